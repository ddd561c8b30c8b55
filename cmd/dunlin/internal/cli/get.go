package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/sdk/client"
	"github.com/spf13/cobra"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func newGet(env Env) *cobra.Command {
	return group(&cobra.Command{Use: "get", Short: "Ask a node what it knows",
		Example: "  dunlin get devices --domain cold-chain\n  dunlin get device fridge-07\n  dunlin get readings fridge-07 --metric temp --since 1h --bucket 5m\n  dunlin get alerts --active -o json"},
		newGetDevices(env), newGetDevice(env), newGetReadings(env), newGetAlerts(env), newGetDomains(env), newGetPlugins(env),
		newGetCredentials(env), newGetDeadLetters(env))
}

// listCommand is a `get` verb that prints a list.
type listCommand[T any] struct {
	use, short, example string
	args                cobra.PositionalArgs
	list                func(c *cobra.Command, cl *client.Client, args []string, limit int) ([]T, bool, error)
	head                []string
	cells               func(T) []string
	flags               func(c *cobra.Command)
	limit               int // default
}

func (l listCommand[T]) command(env Env) *cobra.Command {
	r, out, limit := remote{env: env}, output{}, 0
	if l.args == nil {
		l.args = exactArgs()
	}
	c := &cobra.Command{Use: l.use, Short: l.short, Example: l.example, Args: l.args, RunE: func(c *cobra.Command, args []string) error {
		cl, err := r.client()
		if err != nil {
			return err
		}
		items, more, err := l.list(c, cl, args, limit)
		if err != nil {
			return r.explain(err)
		}
		tellMore(c, more, limit)
		r.tellMissing(c)
		return out.print(c, items, func(w io.Writer) {
			row(w, l.head...)
			for _, it := range items {
				row(w, l.cells(it)...)
			}
		})
	}}
	r.flags(c)
	r.readFlag(c)
	out.flag(c)
	c.Flags().IntVar(&limit, "limit", l.limit, "at most so many; 0: all")
	if l.flags != nil {
		l.flags(c)
	}
	return c
}

func newGetDevices(env Env) *cobra.Command {
	var q client.DevicesQuery
	var domain string
	return listCommand[dunlin.Device]{use: "devices", short: "List registered devices", limit: 100,
		example: "  dunlin get devices --prefix fridge- -o json",
		list: func(c *cobra.Command, cl *client.Client, _ []string, limit int) ([]dunlin.Device, bool, error) {
			q.Domain = dunlin.DomainID(domain)
			return collect(cl.Devices(c.Context(), q), limit)
		},
		head: []string{"DEVICE", "DOMAIN", "LABELS", "REGISTERED"},
		cells: func(d dunlin.Device) []string {
			return []string{string(d.ID), string(d.Domain), joined(d.Labels), clock(d.CreatedAt)}
		},
		flags: func(c *cobra.Command) {
			c.Flags().StringVar(&domain, "domain", "", "of this domain only")
			c.Flags().StringVar(&q.Prefix, "prefix", "", "whose id begins with this")
		}}.command(env)
}

func newGetDevice(env Env) *cobra.Command {
	r, out := remote{env: env}, output{}
	c := &cobra.Command{Use: "device ID", Short: "Show a device: its newest values and active alerts", Args: exactArgs("ID"),
		Example: "  dunlin get device fridge-07",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := r.client()
			if err != nil {
				return err
			}
			tw, err := cl.State(c.Context(), dunlin.DeviceID(args[0]))
			if err != nil {
				return r.explain(err)
			}
			return out.print(c, tw, func(w io.Writer) { deviceTable(w, tw) })
		}}
	r.flags(c)
	r.readFlag(c)
	out.flag(c)
	return c
}

func deviceTable(w io.Writer, tw *client.Twin) {
	row(w, "device", string(tw.Device))
	row(w, "domain", string(tw.Domain))
	row(w, "version", fmt.Sprint(tw.Version))
	row(w, "seen", seen(tw.SeenAt, time.Now()))
	fmt.Fprintln(w)
	row(w, "METRIC", "VALUE", "UNIT", "AT")
	for _, m := range sortedKeys(tw.Reported) {
		v := tw.Reported[m]
		row(w, m, value(v.Value), v.Unit, clock(v.At))
	}
	if len(tw.Alerts) > 0 {
		fmt.Fprintln(w)
		row(w, "ALERT", "SEVERITY", "STATE", "SINCE", "TEXT")
		for _, a := range tw.Alerts {
			row(w, a.Rule, a.Severity.String(), a.State.String(), clock(a.RaisedAt), a.Text)
		}
	}
}

func seen(t dunlin.Time, now time.Time) string {
	if t == 0 {
		return "never"
	}
	return clock(t) + " (" + ago(t, now) + ")"
}

func newGetAlerts(env Env) *cobra.Command {
	var q client.AlertsQuery
	var device, domain string
	return listCommand[client.Alert]{use: "alerts", short: "List alerts, newest first", limit: 100,
		example: "  dunlin get alerts --active\n  dunlin get alerts --device fridge-07 --severity major -o yaml",
		list: func(c *cobra.Command, cl *client.Client, _ []string, limit int) ([]client.Alert, bool, error) {
			q.Device, q.Domain = dunlin.DeviceID(device), dunlin.DomainID(domain)
			return collect(cl.Alerts(c.Context(), q), limit)
		},
		head: []string{"DEVICE", "RULE", "SEVERITY", "STATE", "VALUE", "RAISED", "CLEARED", "TEXT"},
		cells: func(a client.Alert) []string {
			v := ""
			if a.Value != nil {
				v = short(*a.Value)
			}
			rule := a.Rule
			if a.Key != "" {
				rule += "/" + a.Key
			}
			return []string{string(a.Device), rule, a.Severity.String(), a.State.String(), v, clock(a.RaisedAt), clock(a.ClearedAt), cut(a.Text, 60)}
		},
		flags: func(c *cobra.Command) {
			c.Flags().StringVar(&device, "device", "", "of this device only")
			c.Flags().StringVar(&domain, "domain", "", "of this domain only")
			c.Flags().StringVar(&q.State, "state", "", "raised, acknowledged, shelved or cleared")
			c.Flags().StringVar(&q.Severity, "severity", "", "at least info, warning, major or critical")
			c.Flags().BoolVar(&q.Active, "active", false, "only those not cleared")
		}}.command(env)
}

func newGetDomains(env Env) *cobra.Command {
	return listCommand[dunlin.Domain]{use: "domains", short: "List domains",
		list: func(c *cobra.Command, cl *client.Client, _ []string, limit int) ([]dunlin.Domain, bool, error) {
			return collect(cl.Domains(c.Context()), limit)
		},
		head: []string{"DOMAIN", "OWNER", "PIPELINE", "STRANGERS", "REVISION", "DESCRIPTION"},
		cells: func(d dunlin.Domain) []string {
			names := make([]string, 0, len(d.Pipeline))
			for _, p := range d.Pipeline {
				names = append(names, p.Plugin)
			}
			return []string{string(d.ID), d.Owner, strings.Join(names, ","), string(d.UnknownDevices), fmt.Sprint(d.Revision), cut(d.Description, 60)}
		}}.command(env)
}

func newGetPlugins(env Env) *cobra.Command {
	return listCommand[dunlin.Plugin]{use: "plugins", short: "List plugins with their active versions",
		list: func(c *cobra.Command, cl *client.Client, _ []string, limit int) ([]dunlin.Plugin, bool, error) {
			return collect(cl.Plugins(c.Context()), limit)
		},
		head: []string{"PLUGIN", "MODULE", "BYTES", "LANGUAGE", "UPDATED"},
		cells: func(p dunlin.Plugin) []string {
			return []string{p.Name, p.Hash.String()[:12], fmt.Sprint(p.Bytes), p.Language, clock(p.UpdatedAt)}
		}}.command(env)
}

func newGetCredentials(env Env) *cobra.Command {
	return listCommand[dunlin.Credential]{use: "credentials", short: "List credentials, without their secrets",
		list: func(c *cobra.Command, cl *client.Client, _ []string, limit int) ([]dunlin.Credential, bool, error) {
			return collect(cl.Credentials(c.Context()), limit)
		},
		head: []string{"KIND", "ID", "DOMAIN", "CREATED"},
		cells: func(cr dunlin.Credential) []string {
			return []string{string(cr.Kind), cr.ID, string(cr.Domain), clock(cr.CreatedAt)}
		}}.command(env)
}

func newGetDeadLetters(env Env) *cobra.Command {
	var device string
	return listCommand[client.DeadLetter]{use: "deadletters", short: "List inputs that a plugin failed on, newest first", limit: 100,
		list: func(c *cobra.Command, cl *client.Client, _ []string, limit int) ([]client.DeadLetter, bool, error) {
			return collect(cl.DeadLetters(c.Context(), dunlin.DeviceID(device), limit), limit)
		},
		head: []string{"DEVICE", "SEQ", "AT", "STAGE", "MODULE", "REASON"},
		cells: func(d client.DeadLetter) []string {
			return []string{string(d.Device), fmt.Sprint(d.Seq), clock(d.At), fmt.Sprint(d.Stage), d.Hash.String()[:12], cut(d.Reason, 80)}
		},
		flags: func(c *cobra.Command) { c.Flags().StringVar(&device, "device", "", "of this device only") }}.command(env)
}
