package cli

import (
	"fmt"

	"github.com/dunlin-iot/dunlin"
	"github.com/spf13/cobra"
)

func newDevice(env Env) *cobra.Command {
	return group(&cobra.Command{Use: "device", Short: "Register and remove devices"}, newDeviceAdd(env), newDeviceRemove(env))
}

func newDeviceAdd(env Env) *cobra.Command {
	r, domain, labels := remote{env: env}, "", map[string]string{}
	c := &cobra.Command{Use: "add ID --domain DOMAIN", Short: "Register a device, or change its domain and labels", Args: exactArgs("ID"),
		Long: "add registers a device. A device of a domain that takes no strangers (unknown_devices: reject) is heard only\n" +
			"once it is registered, whether it has a credential or not.",
		Example: "  dunlin device add oven-1 --domain bakery --label hall=2",
		RunE: func(c *cobra.Command, args []string) error {
			if domain == "" {
				return usageError{c.CommandPath(), "say which domain it belongs to with --domain"}
			}
			cl, err := r.client()
			if err != nil {
				return err
			}
			d, err := cl.PutDevice(c.Context(), dunlin.Device{ID: dunlin.DeviceID(args[0]), Domain: dunlin.DomainID(domain), Labels: labels}, dunlin.AnyRevision)
			if err != nil {
				return r.explain(err)
			}
			fmt.Fprintf(c.OutOrStdout(), "device %s of domain %s is at revision %d\n", d.ID, d.Domain, d.Revision)
			return nil
		}}
	r.flags(c)
	c.Flags().StringVar(&domain, "domain", "", "whose it is")
	c.Flags().StringToStringVar(&labels, "label", nil, "key=value; may be given more than once")
	return c
}

func newDeviceRemove(env Env) *cobra.Command {
	r := remote{env: env}
	c := &cobra.Command{Use: "remove ID", Short: "Remove a device with its twin, history and alerts", Args: exactArgs("ID"),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := r.client()
			if err != nil {
				return err
			}
			if err := cl.DeleteDevice(c.Context(), dunlin.DeviceID(args[0]), dunlin.AnyRevision); err != nil {
				return r.explain(err)
			}
			fmt.Fprintf(c.OutOrStdout(), "device %s is removed\n", args[0])
			return nil
		}}
	r.flags(c)
	return c
}
