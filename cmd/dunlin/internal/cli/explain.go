package cli

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/sdk/client"
	"github.com/spf13/cobra"
)

func newExplain(env Env) *cobra.Command {
	r, out := remote{env: env}, output{}
	c := &cobra.Command{Use: "explain ALERT-ID", Short: "Tell how an alert came about, and run its turn again", Args: exactArgs("ALERT-ID"),
		Long: "explain shows the inputs of the turn that raised an alert, which module ran on them with which configuration, the plugin's\n" +
			"state of the device before and after, and what comes of it when the turn is run again, now.",
		Example: "  dunlin get alerts -o json | jq -r '.[0].id'\n  dunlin explain fridge-7/too-warm/1234",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := r.client()
			if err != nil {
				return err
			}
			x, err := cl.Explain(c.Context(), args[0])
			if errors.Is(err, dunlin.ErrNotFound) {
				return fmt.Errorf("%w\n  `dunlin get alerts -o json` has the ids", err)
			}
			if err != nil {
				return r.explain(err)
			}
			return out.print(c, x, func(w io.Writer) { explanationTable(w, x) })
		}}
	r.flags(c)
	r.readFlag(c)
	out.flag(c)
	return c
}

func explanationTable(w io.Writer, x *client.Explanation) {
	a := &x.Alert
	row(w, "alert", a.ID+", "+a.Severity.String()+", "+a.State.String()+" now")
	row(w, "text", a.Text)
	row(w, "raised", clock(a.RaisedAt))
	row(w, "turn", fmt.Sprintf("%s, shard %d, entry %d", clock(x.At), x.Shard, x.Index))
	module := x.Hash.String()[:12]
	if x.Plugin != "" {
		module = x.Plugin + " " + x.Version + " " + module
	}
	row(w, "module", strings.Join(strings.Fields(module), " "))
	row(w, "stage", fmt.Sprintf("%d %s", x.Stage, x.Name))
	if len(x.Config) > 0 {
		row(w, "config", string(x.Config))
	}
	if len(x.Rules) > 0 {
		row(w, "rules", cut(string(x.Rules), 160))
	}
	for i := range x.Inputs {
		in := &x.Inputs[i]
		mark := "input"
		if i == x.Input {
			mark = "input that did it"
		}
		row(w, mark, fmt.Sprintf("%d, %s, %s%s", x.Seq+uint64(i), in.Kind, clock(in.Received), inputText(in)))
	}
	from := "as it was written"
	if x.StateFrom == "rebuilt" {
		from = fmt.Sprintf("rebuilt from %d turns since %s", x.Turns, clock(x.Rebuilt))
		if x.Whole {
			from += ", the device's first"
		}
	}
	row(w, "state before", stateText(x.Before)+" ("+from+")")
	row(w, "state after", stateText(x.After))
	for i := range x.Again {
		n := &x.Again[i]
		row(w, "run again", n.ID+", "+n.Severity.String()+", "+n.State.String()+", "+n.Text)
	}
	for _, l := range x.Logs {
		row(w, "says", l)
	}
	if x.Same {
		row(w, "same", fmt.Sprintf("yes, for %s fuel", thousands(x.Fuel)))
	} else {
		row(w, "same", "NO: "+x.Difference)
	}
}

func inputText(in *client.Input) string {
	var parts []string
	if in.Timer != "" {
		parts = append(parts, in.Timer)
	}
	if in.Sender != "" {
		parts = append(parts, "from "+in.Sender)
	}
	for i := range in.Records {
		r := &in.Records[i]
		parts = append(parts, strings.TrimSpace(r.Metric+" "+value(r.Value)+" "+r.Unit))
	}
	if len(in.Payload) > 0 {
		parts = append(parts, fmt.Sprintf("%d bytes %s", len(in.Payload), cut(hex.EncodeToString(in.Payload), 64)))
	}
	if in.Skewed {
		parts = append(parts, "clock off")
	}
	if len(parts) == 0 {
		return ""
	}
	return ": " + strings.Join(parts, ", ")
}

func stateText(b []byte) string {
	if len(b) == 0 {
		return "none"
	}
	return fmt.Sprintf("%d bytes %s", len(b), cut(hex.EncodeToString(b), 64))
}
