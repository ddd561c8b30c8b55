package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/sdk/client"
	"github.com/spf13/cobra"
)

// letters is what `plugin deadletters` and its commands were told.
type letters struct {
	remote
	out                    output
	device, plugin, domain string
	all                    bool
	limit                  int
}

func newPluginDeadLetters(env Env) *cobra.Command {
	l := letters{remote: remote{env: env}}
	c := &cobra.Command{Use: "deadletters", Aliases: []string{"dead-letters"}, Short: "List, explain, replay or drop inputs that a plugin failed on",
		Long: "deadletters lists inputs that a plugin failed on, or refused. Their readings are kept; only what the plugin would have made\n" +
			"of them is missing.",
		Example: "  dunlin plugin deadletters --plugin too-warm\n  dunlin plugin deadletters explain fridge-7/0/1234\n" +
			"  dunlin plugin deadletters replay --all --plugin too-warm\n  dunlin plugin deadletters drop fridge-7/0/1234",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{c.CommandPath(), fmt.Sprintf("%q is none of explain, replay, drop", args[0])}
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return l.list(c) }}
	l.remote.flags(c)
	l.out.flag(c)
	l.filters(c)
	c.Flags().IntVar(&l.limit, "limit", 100, "at most so many, up to 1,000")
	c.AddCommand(newLettersExplain(env), newLettersReplay(env), newLettersDrop(env))
	return c
}

func (l *letters) filters(c *cobra.Command) {
	c.Flags().StringVar(&l.device, "device", "", "of this device only")
	c.Flags().StringVar(&l.plugin, "plugin", "", "of this plugin's versions only")
	c.Flags().StringVar(&l.domain, "domain", "", "of this domain's devices only")
}

// found lists the letters that pass the filters.
func (l *letters) found(c *cobra.Command, cl *client.Client) ([]client.DeadLetter, error) {
	modules := map[dunlin.ModuleHash]bool{}
	if l.plugin != "" {
		p, err := cl.Plugin(c.Context(), l.plugin)
		if err != nil {
			return nil, l.explain(err)
		}
		modules[p.Hash] = true
		for _, h := range p.Previous {
			modules[h] = true
		}
		for i := range p.Versions {
			modules[p.Versions[i].Hash] = true
		}
	}
	all, _, err := collect(cl.DeadLetters(c.Context(), dunlin.DeviceID(l.device), 1000), 0)
	if err != nil {
		return nil, l.explain(err)
	}
	kept := []client.DeadLetter{}
	for _, d := range all {
		if (l.plugin == "" || modules[d.Hash]) && (l.domain == "" || string(d.Domain) == l.domain) {
			kept = append(kept, d)
		}
	}
	return kept, nil
}

func (l *letters) list(c *cobra.Command) error {
	cl, err := l.client()
	if err != nil {
		return err
	}
	found, err := l.found(c, cl)
	if err != nil {
		return err
	}
	more := l.limit > 0 && len(found) > l.limit
	if more {
		found = found[:l.limit]
	}
	err = l.out.print(c, found, func(w io.Writer) {
		row(w, "ID", "AT", "MODULE", "REASON")
		for i := range found {
			d := &found[i]
			row(w, d.LetterID(), clock(d.At), d.Hash.String()[:12], cut(d.Reason, 80))
		}
	})
	tellMore(c, more, l.limit)
	l.tellMissing(c)
	return err
}

func newLettersExplain(env Env) *cobra.Command {
	l := letters{remote: remote{env: env}}
	c := &cobra.Command{Use: "explain ID", Short: "Show a dead letter's input, and say what its reason means", Args: exactArgs("ID"),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := l.client()
			if err != nil {
				return err
			}
			l.device, _, _ = strings.Cut(args[0], "/")
			found, err := l.found(c, cl)
			if err != nil {
				return err
			}
			for i := range found {
				if d := &found[i]; d.LetterID() == args[0] {
					return l.out.print(c, d, func(w io.Writer) { letterTable(w, d) })
				}
			}
			return fmt.Errorf("there is no dead letter %s; `dunlin plugin deadletters` lists them", args[0])
		}}
	l.remote.flags(c)
	l.out.flag(c)
	return c
}

func letterTable(w io.Writer, d *client.DeadLetter) {
	row(w, "letter", d.LetterID())
	row(w, "domain", string(d.Domain))
	row(w, "module", d.Hash.String())
	row(w, "failed", clock(d.At))
	row(w, "reason", d.Reason)
	row(w, "means", meaning(d.Reason))
	in := client.Input{Kind: "telemetry", Received: d.Received, Records: d.Records, Payload: d.Payload, Timer: d.Timer}
	row(w, "input", clock(d.Received)+inputText(&in))
}

// meaning says what a reason means and what can be done, in the words of docs/plugins.md.
func meaning(reason string) string {
	for _, m := range []struct{ prefix, text string }{
		{"plugin: ", "the plugin said so itself, or a handler panicked; fix it, push it and replay"},
		{"trap: ", "the module trapped; fix it, push it and replay"},
		{"fuel exhausted", "it took too long; it may be a loop that does not end"},
		{"quarantined until", "it had failed on this device several times in a row, and was not run; replay it"},
		{"not tried: ", "it had failed on so many devices of the batch that it was not run on this one; replay it"},
		{"the plugin does not start: ", "it refuses its settings, or fails before the first batch; it was not run"},
		{"output too large", "its answer was beyond a limit"}, {"too many ", "its answer was beyond a limit"}, {"state too large", "its state was beyond a limit"},
		{"bad frame", "its answer was none of the ABI; was it built with an SDK of this version?"},
		{"input too large", "the device's inputs and state together were beyond a limit"},
	} {
		if strings.HasPrefix(reason, m.prefix) {
			return m.text
		}
	}
	return "the plugin refused this input"
}

func newLettersReplay(env Env) *cobra.Command {
	l := letters{remote: remote{env: env}}
	c := &cobra.Command{Use: "replay ID… | --all --plugin NAME", Short: "Hand dead letters' inputs to the present version, as new turns",
		Long: "replay sends an input again: the plugin's present version gets it as a new turn of the device, with now as its receipt. The\n" +
			"readings are the same ones and are not there twice. A letter goes away when the plugin takes its input.",
		Args: l.some,
		RunE: func(c *cobra.Command, args []string) error {
			return l.each(c, args, func(cl *client.Client, id string) (string, error) {
				again, err := cl.ReplayLetter(c.Context(), id)
				if err != nil || again == "" {
					return "succeeded", err
				}
				return "", fmt.Errorf("failed again: %s", again)
			})
		}}
	l.remote.flags(c)
	l.filters(c)
	c.Flags().BoolVar(&l.all, "all", false, "all that the filters let through")
	return c
}

func newLettersDrop(env Env) *cobra.Command {
	l := letters{remote: remote{env: env}}
	c := &cobra.Command{Use: "drop ID… | --all --plugin NAME", Short: "Remove dead letters", Args: l.some,
		RunE: func(c *cobra.Command, args []string) error {
			return l.each(c, args, func(cl *client.Client, id string) (string, error) { return "dropped", cl.DropLetter(c.Context(), id) })
		}}
	l.remote.flags(c)
	l.filters(c)
	c.Flags().BoolVar(&l.all, "all", false, "all that the filters let through")
	return c
}

// some checks that letters are named, one way or the other.
func (l *letters) some(c *cobra.Command, args []string) error {
	switch {
	case l.all && len(args) > 0:
		return usageError{c.CommandPath(), "want ids or --all, not both"}
	case l.all && l.plugin == "" && l.device == "" && l.domain == "":
		return usageError{c.CommandPath(), "say of what: --all with --plugin, --device or --domain"}
	case !l.all && len(args) == 0:
		return usageError{c.CommandPath(), "name dead letters by their ids, or --all with --plugin NAME"}
	}
	return nil
}

// each does something with all the letters named, oldest first, and goes on where one fails.
func (l *letters) each(c *cobra.Command, ids []string, do func(*client.Client, string) (string, error)) error {
	cl, err := l.client()
	if err != nil {
		return err
	}
	if l.all {
		found, err := l.found(c, cl)
		if err != nil {
			return err
		}
		for i := range found {
			ids = append(ids, found[len(found)-1-i].LetterID())
		}
	}
	failed := 0
	for _, id := range ids {
		word, err := do(cl, id)
		if err != nil {
			if c.Context().Err() != nil {
				return err
			}
			failed++
			word = printable(l.explain(err).Error())
		}
		fmt.Fprintf(c.OutOrStdout(), "%s %s\n", printable(id), word)
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d dead letters are still there", failed, len(ids))
	}
	if len(ids) == 0 {
		fmt.Fprintln(c.ErrOrStderr(), "There are none.")
	}
	return nil
}
