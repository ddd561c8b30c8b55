package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/sdk/client"
	"github.com/spf13/cobra"
)

type readingsFlags struct {
	remote remote
	out    output
	q      client.ReadingsQuery
	since  time.Duration
	limit  int
}

func newGetReadings(env Env) *cobra.Command {
	f := readingsFlags{remote: remote{env: env}}
	c := &cobra.Command{Use: "readings ID", Short: "Show a device's history, raw or in buckets", Args: exactArgs("ID"),
		Example: "  dunlin get readings fridge-07 --metric temp --since 1h\n" +
			"  dunlin get readings fridge-07 --bucket 5m --from 2026-01-01T00:00:00Z --to 2026-01-02T00:00:00Z -o json",
		RunE: func(c *cobra.Command, args []string) error { return f.run(c, dunlin.DeviceID(args[0])) }}
	f.remote.flags(c)
	f.remote.readFlag(c)
	f.out.flag(c)
	fl := c.Flags()
	fl.StringSliceVar(&f.q.Metrics, "metric", nil, "only these; may be given more than once")
	fl.DurationVar(&f.since, "since", 0, "from so long ago on")
	fl.StringVar(&f.q.From, "from", "", "first moment, RFC 3339")
	fl.StringVar(&f.q.To, "to", "", "moment after the last, RFC 3339")
	fl.StringVar(&f.q.Bucket, "bucket", "", "aggregate over buckets of this width, such as 5m")
	fl.BoolVar(&f.q.Newest, "newest", false, "newest first")
	fl.IntVar(&f.limit, "limit", 1000, "at most so many; 0: all")
	return c
}

func (f *readingsFlags) run(c *cobra.Command, id dunlin.DeviceID) error {
	if f.since > 0 {
		if f.q.From != "" {
			return usageError{c.CommandPath(), "--since and --from both say where to begin; give one"}
		}
		f.q.From = time.Now().Add(-f.since).UTC().Format(time.RFC3339)
	}
	cl, err := f.remote.client()
	if err != nil {
		return err
	}
	if f.q.Bucket != "" {
		buckets, more, err := collect(cl.Buckets(c.Context(), id, f.q), f.limit)
		if err != nil {
			return f.remote.explain(err)
		}
		tellMore(c, more, f.limit)
		return f.out.print(c, buckets, func(w io.Writer) {
			row(w, "START", "METRIC", "COUNT", "MIN", "MEAN", "MAX", "FIRST", "LAST")
			for _, b := range buckets {
				row(w, clock(b.Start), b.Metric, fmt.Sprint(b.Count), short(b.Min), short(b.Mean), short(b.Max), short(b.First), short(b.Last))
			}
		})
	}
	readings, more, err := collect(cl.Readings(c.Context(), id, f.q), f.limit)
	if err != nil {
		return f.remote.explain(err)
	}
	tellMore(c, more, f.limit)
	return f.out.print(c, readings, func(w io.Writer) {
		row(w, "TIME", "METRIC", "VALUE", "UNIT")
		for _, r := range readings {
			row(w, r.Time.String(), r.Metric, value(r.Value), r.Unit)
		}
	})
}

// short is a number of a table: six digits are enough for people; -o json has them all.
func short(v client.Number) string { return fmt.Sprintf("%.6g", float64(v)) }

func newTail(env Env) *cobra.Command {
	r, jsonLines := remote{env: env}, false
	c := &cobra.Command{Use: "tail DEVICE", Short: "Follow a device's readings and alerts live, until Ctrl-C", Args: exactArgs("DEVICE"),
		Long: "tail prints what a device reports and its alerts as they are committed. When the connection breaks it resumes\n" +
			"where it was, so nothing is missed.",
		Example: "  dunlin tail fridge-07\n  dunlin tail fridge-07 -o json | jq .records",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := r.client()
			if err != nil {
				return err
			}
			q := client.EventsQuery{Device: dunlin.DeviceID(args[0]), Retrying: func(err error, wait time.Duration) {
				fmt.Fprintf(c.ErrOrStderr(), "connection lost (%v); trying again in %v\n", err, wait.Round(time.Second))
			}}
			for ev, err := range cl.Events(c.Context(), q) {
				if c.Context().Err() != nil {
					return nil // Ctrl-C is how it ends
				}
				if err != nil {
					return r.explain(err)
				}
				if jsonLines {
					fmt.Fprintf(c.OutOrStdout(), "%s\n", ev.Data)
				} else {
					tailLine(c.OutOrStdout(), &ev)
				}
			}
			return nil
		}}
	r.flags(c)
	c.Flags().VarP(choice{&jsonLines}, "output", "o", "text, or json for a document a line")
	return c
}

func tailLine(w io.Writer, ev *client.Event) {
	switch {
	case ev.Alert != nil:
		a := ev.Alert
		fmt.Fprintf(w, "%s  alert %s %s: %s %s\n", clock(a.At), a.State, a.Severity, printable(a.Rule), printable(a.Text))
	case ev.Reading != nil:
		cells := make([]string, 0, len(ev.Reading.Records))
		for _, r := range ev.Reading.Records {
			cells = append(cells, printable(strings.TrimSpace(r.Metric+"="+value(r.Value)+" "+r.Unit)))
		}
		note := ""
		if ev.Reading.Skewed && len(ev.Reading.Records) > 0 {
			note = "  (its clock is off: " + clock(ev.Reading.Records[0].Time) + ")"
		}
		fmt.Fprintf(w, "%s  #%d  %s%s\n", clock(ev.Reading.Received), ev.Reading.Seq, strings.Join(cells, "  "), note)
	case ev.Device != nil:
		d, did := ev.Device, "is at revision "+fmt.Sprint(ev.Device.Revision)
		switch {
		case d.Deleted:
			did = "is removed"
		case d.Revision == 1:
			did = "is registered"
		}
		at := d.UpdatedAt
		if at == 0 { // of one that is gone
			at = dunlin.TimeOf(time.Now())
		}
		fmt.Fprintf(w, "%s  device %s %s, domain %s\n", clock(at), d.ID, did, cmp.Or(string(d.Domain), "-"))
	}
}

// choice is the -o flag of a command that prints text or lines of JSON.
type choice struct{ json *bool }

func (c choice) Set(s string) error {
	if s != "text" && s != "json" {
		return errors.New("want text or json")
	}
	*c.json = s == "json"
	return nil
}

func (c choice) String() string {
	if c.json != nil && *c.json {
		return "json"
	}
	return "text"
}

func (choice) Type() string { return "string" }
