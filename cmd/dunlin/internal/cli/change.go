package cli

import (
	"fmt"
	"io"
	"os"

	"github.com/dunlin-iot/dunlin"
	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"
)

func newApply(env Env) *cobra.Command {
	r, file := remote{env: env}, ""
	c := &cobra.Command{Use: "apply -f FILE", Short: "Create or change a domain as a YAML or JSON file says it", Args: exactArgs(),
		Example: "  dunlin apply -f domain.yaml\n  cat domain.yaml | dunlin apply -f -",
		RunE: func(c *cobra.Command, _ []string) error {
			if file == "" {
				return usageError{c.CommandPath(), "say which file with -f; - is standard input"}
			}
			doc, err := readFile(file, env)
			if err != nil {
				return err
			}
			var head struct {
				ID string `yaml:"id"`
			}
			if err := yaml.Unmarshal(doc, &head); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			if head.ID == "" {
				return fmt.Errorf("%s: no `id:`; a domain's file says which domain it is", file)
			}
			cl, err := r.client()
			if err != nil {
				return err
			}
			d, err := cl.ApplyDomain(c.Context(), dunlin.DomainID(head.ID), "application/yaml", doc, dunlin.AnyRevision)
			if err != nil {
				return r.explain(err)
			}
			fmt.Fprintf(c.OutOrStdout(), "domain %s is at revision %d\n", d.ID, d.Revision)
			return nil
		}}
	r.flags(c)
	c.Flags().StringVarP(&file, "file", "f", "", "the file; - for standard input")
	return c
}

func readFile(name string, env Env) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(io.LimitReader(env.Stdin, 1<<20))
	}
	return os.ReadFile(name)
}

func newCredential(env Env) *cobra.Command {
	return group(&cobra.Command{Use: "credential", Short: "Make and remove credentials of devices, gateways, applications and operators"},
		newCredentialAdd(env), newCredentialRemove(env))
}

const kinds = "device, gateway, application or operator"

func newCredentialAdd(env Env) *cobra.Command {
	r, domain, secret := remote{env: env}, "", ""
	c := &cobra.Command{Use: "add KIND ID", Short: "Make or replace a credential and print its secret, once", Args: exactArgs("KIND", "ID"),
		Long:    "add makes a credential of a " + kinds + ". Only its hash is kept: the secret is printed this once.",
		Example: "  dunlin credential add device oven-1 --domain bakery\n  dunlin credential add operator alice",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := r.client()
			if err != nil {
				return err
			}
			got, err := cl.PutCredential(c.Context(), dunlin.Credential{Kind: dunlin.CredentialKind(args[0]), ID: args[1], Domain: dunlin.DomainID(domain)}, secret)
			if err != nil {
				return r.explain(err)
			}
			fmt.Fprintln(c.OutOrStdout(), got)
			return nil
		}}
	r.flags(c)
	c.Flags().StringVar(&domain, "domain", "", "where a device belongs that is not registered yet; a gateway's reach")
	c.Flags().StringVar(&secret, "secret", "", "chosen secret of at least 12 bytes; default: the node makes one")
	return c
}

func newCredentialRemove(env Env) *cobra.Command {
	r := remote{env: env}
	c := &cobra.Command{Use: "remove KIND ID", Short: "Remove a credential", Args: exactArgs("KIND", "ID"),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := r.client()
			if err != nil {
				return err
			}
			if err := cl.DeleteCredential(c.Context(), dunlin.CredentialKind(args[0]), args[1]); err != nil {
				return r.explain(err)
			}
			fmt.Fprintf(c.OutOrStdout(), "%s %s is removed\n", args[0], args[1])
			return nil
		}}
	r.flags(c)
	return c
}
