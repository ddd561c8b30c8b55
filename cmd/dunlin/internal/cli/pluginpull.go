package cli

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"aead.dev/minisign"
	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cmd/dunlin/internal/oci"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// readModule reads a module from a file, or from a registry.
func readModule(ctx context.Context, from string) (*moduleSource, error) {
	ref, remote := strings.CutPrefix(from, "oci://")
	if !remote {
		return readFileModule(from)
	}
	a, err := oci.Pull(ctx, ref, oci.Options{})
	if err != nil {
		return nil, err
	}
	return &moduleSource{module: a.Module, name: a.Name, source: "oci://" + a.Reference, signature: a.Signature}, nil
}

func newPluginPull(env Env) *cobra.Command {
	r, to := remote{env: env}, ""
	c := &cobra.Command{Use: "pull NAME[@VERSION]|oci://REFERENCE", Short: "Download a plugin's module from the node, or from a registry", Args: exactArgs("NAME[@VERSION]|oci://REFERENCE"),
		Example: "  dunlin plugin pull too-warm@1.2.0 --to ./too-warm.wasm\n  dunlin plugin pull oci://registry.example.com/plugins/too-warm:1.2.0\n" +
			"  dunlin plugin pull too-warm --to oci://registry.example.com/plugins/too-warm:1.2.0",
		Long: "pull writes a module to a file, or with --to oci://… into a registry as an OCI artifact with its signature.",
		RunE: func(c *cobra.Command, args []string) error {
			src, err := pullModule(c, &r, args[0])
			if err != nil {
				return err
			}
			if ref, remote := strings.CutPrefix(to, "oci://"); remote {
				digest, err := oci.Push(c.Context(), ref, oci.Artifact{Name: src.name, Module: src.module, Signature: src.signature}, oci.Options{})
				if err != nil {
					return err
				}
				fmt.Fprintf(c.OutOrStdout(), "%s@%s\n", ref, digest)
				return nil
			}
			file := to
			if file == "" {
				file = src.name + ".wasm"
			}
			if err := os.WriteFile(file, src.module, 0o644); err != nil {
				return err
			}
			if src.signature != "" {
				if err := os.WriteFile(file+".minisig", []byte(src.signature), 0o644); err != nil {
					return err
				}
			}
			fmt.Fprintf(c.OutOrStdout(), "%s: %d bytes, %x\n", file, len(src.module), sha256.Sum256(src.module))
			return nil
		}}
	r.flags(c)
	c.Flags().StringVar(&to, "to", "", "file, or oci://REGISTRY/NAME:TAG; default NAME.wasm")
	return c
}

// pullModule takes a module from the node, from a registry, or from a file.
func pullModule(c *cobra.Command, r *remote, from string) (*moduleSource, error) {
	if strings.HasPrefix(from, "oci://") || strings.HasSuffix(from, ".wasm") {
		return readModule(c.Context(), from)
	}
	cl, err := r.client()
	if err != nil {
		return nil, err
	}
	name, version, chosen := strings.Cut(from, "@")
	p, err := cl.Plugin(c.Context(), name)
	if err != nil {
		return nil, r.explain(err)
	}
	if !chosen {
		version = p.Hash.String()
	}
	m := &moduleSource{name: name}
	if m.module, err = cl.Module(c.Context(), name, version); err != nil {
		return nil, r.explain(err)
	}
	return m, nil
}

func newPluginSign(env Env) *cobra.Command {
	key, comment := "", ""
	c := &cobra.Command{Use: "sign FILE.wasm", Short: "Sign a module with a minisign key; the signature is written beside it", Args: exactArgs("FILE.wasm"),
		Long: "sign writes FILE.wasm.minisig, as `minisign -S` does. A key pair is made with `minisign -G`, or with --generate.\n" +
			"The password is asked for, or read from standard input when that is no terminal.",
		Example: "  dunlin plugin sign --generate --key ./release.key ./too-warm.wasm\n  dunlin plugin sign --key ./release.key ./too-warm.wasm",
	}
	generate := false
	c.RunE = func(c *cobra.Command, args []string) error {
		module, err := os.ReadFile(args[0])
		if err != nil {
			return err
		}
		if key == "" {
			return usageError{c.CommandPath(), "say which secret key with --key"}
		}
		private, err := secretKey(c, env, key, generate)
		if err != nil {
			return err
		}
		if comment == "" {
			comment = fmt.Sprintf("%s sha256:%x", filepath.Base(args[0]), sha256.Sum256(module))
		}
		sig := minisign.SignWithComments(private, module, comment, "signature of a dunlin plugin")
		if err := os.WriteFile(args[0]+".minisig", sig, 0o644); err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "%s.minisig\n", args[0])
		return nil
	}
	c.Flags().StringVar(&key, "key", "", "file of the minisign secret key")
	c.Flags().StringVar(&comment, "comment", "", "trusted comment; default the file's name and hash")
	c.Flags().BoolVar(&generate, "generate", false, "make a key pair first: the secret key without a password in --key, the public one in --key with .pub")
	return c
}

func secretKey(c *cobra.Command, env Env, file string, generate bool) (key minisign.PrivateKey, err error) {
	if generate {
		return generateKey(c, file)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return key, err
	}
	if !minisign.IsEncrypted(b) {
		err = key.UnmarshalText(b)
		return key, err
	}
	password, err := askPassword(c, env, file)
	if err != nil {
		return key, err
	}
	if key, err = minisign.DecryptKey(password, b); err != nil {
		return key, fmt.Errorf("%s: the password is wrong, or the file is no minisign key: %w", file, err)
	}
	return key, nil
}

func generateKey(c *cobra.Command, file string) (key minisign.PrivateKey, err error) {
	public, key, err := minisign.GenerateKey(nil)
	if err != nil {
		return key, err
	}
	secret, err := key.MarshalText()
	if err != nil {
		return key, err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return key, err
	}
	if _, err = f.Write(secret); err == nil {
		err = f.Close()
	}
	if err != nil {
		return key, err
	}
	text, err := public.MarshalText()
	if err != nil {
		return key, err
	}
	fmt.Fprintf(c.ErrOrStderr(), "public key %s is in %s.pub; name it in a domain's signers\n", public, file)
	return key, os.WriteFile(file+".pub", text, 0o644)
}

func askPassword(c *cobra.Command, env Env, file string) (string, error) {
	if f, ok := env.Stdin.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprintf(c.ErrOrStderr(), "password of %s: ", file)
		b, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(c.ErrOrStderr())
		return string(b), err
	}
	b, err := io.ReadAll(io.LimitReader(env.Stdin, 4096))
	return strings.TrimRight(string(b), "\r\n"), err
}

func newPluginVerify(_ Env) *cobra.Command {
	key := ""
	c := &cobra.Command{Use: "verify FILE.wasm", Short: "Check a module's signature with a public key", Args: exactArgs("FILE.wasm"),
		Example: "  dunlin plugin verify --key ./release.key.pub ./too-warm.wasm",
		RunE: func(c *cobra.Command, args []string) error {
			src, err := readModule(c.Context(), args[0])
			if err != nil {
				return err
			}
			if src.signature == "" {
				return fmt.Errorf("%s has no signature beside it", args[0])
			}
			if key == "" {
				return usageError{c.CommandPath(), "say which public key with --key"}
			}
			text, err := publicKey(key)
			if err != nil {
				return err
			}
			var public minisign.PublicKey
			if err := public.UnmarshalText([]byte(text)); err != nil {
				return fmt.Errorf("%w: %s is no minisign public key", dunlin.ErrInvalid, key)
			}
			if !minisign.Verify(public, src.module, []byte(src.signature)) {
				return fmt.Errorf("the signature of %s is not by key %s, or the module was changed", args[0], text)
			}
			var sig minisign.Signature
			if err := sig.UnmarshalText([]byte(src.signature)); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "signed by %s: %s\n", text, printable(sig.TrustedComment))
			return nil
		}}
	c.Flags().StringVar(&key, "key", "", "minisign public key, or its .pub file")
	return c
}

// publicKey returns a minisign public key that is given itself, or as a file.
func publicKey(s string) (string, error) {
	if strings.HasPrefix(s, "RW") && len(s) == 56 {
		return s, nil
	}
	b, err := os.ReadFile(s)
	if err != nil {
		return "", fmt.Errorf("public key: %w; give the key itself (RW…), or its .pub file", err)
	}
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "RW") {
			return line, nil
		}
	}
	return "", fmt.Errorf("%w: %s holds no minisign public key", dunlin.ErrInvalid, s)
}
