package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/sdk/client"
	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"
)

// backtest is what `plugin backtest` was told.
type backtest struct {
	remote
	out                           output
	q                             client.BacktestQuery
	domain, device, known         string
	rules, config                 string // files
	since, until, warmUp, nearest string
}

func newPluginBacktest(env Env) *cobra.Command {
	b := backtest{remote: remote{env: env}}
	c := &cobra.Command{Use: "backtest [FILE.wasm]", Short: "Try a module or rules on recorded inputs, without effects",
		Long: "backtest runs a candidate over what a domain's devices have sent, as far back as the recording reaches, and tells which\n" +
			"alerts it would have added, removed or moved in time against what the deployed version did, and what it costs.\n" +
			"Nothing else happens: no alert is raised, no state is changed. The candidate is a file, a version that the node\n" +
			"knows (--plugin NAME@VERSION), or rules (--rules FILE). It takes the place of one stage of the domain's pipeline.\n" +
			"The deployed version itself is run exactly as it was, which shows that the recording can be trusted.",
		Example: "  dunlin plugin backtest ./new.wasm --domain cold-chain --since 30d\n" +
			"  dunlin plugin backtest --plugin too-warm@1.3.0 --domain cold-chain --since 7d --device fridge-7\n" +
			"  dunlin plugin backtest --rules ./rules.yaml --domain cold-chain --stage rules --since 2026-05-01T00:00:00Z -o json",
		Args: func(c *cobra.Command, args []string) error {
			if n := len(args); n > 1 || (n == 1) && (b.known != "" || b.rules != "") || b.known != "" && b.rules != "" {
				return usageError{c.CommandPath(), "want one candidate: FILE.wasm, --plugin NAME@VERSION or --rules FILE"}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return b.run(c, args) }}
	b.flags(c)
	b.out.flag(c)
	f := c.Flags()
	f.StringVar(&b.domain, "domain", "", "whose devices (needed)")
	f.StringVar(&b.since, "since", "7d", "compare from then on: a span such as 30d, or RFC 3339")
	f.StringVar(&b.until, "until", "", "until then; default now")
	f.StringVar(&b.q.Stage, "stage", "", "the pipeline's stage that the candidate takes the place of; default the only one")
	f.StringVar(&b.device, "device", "", "only this device")
	f.StringVar(&b.known, "plugin", "", "a version that the node knows: NAME, NAME@VERSION or NAME@HASH")
	f.StringVar(&b.rules, "rules", "", "a file with rules, JSON or YAML")
	f.StringVar(&b.config, "config", "", "a file with the candidate's configuration, JSON or YAML; default the stage's")
	f.StringVar(&b.warmUp, "warm-up", "", "begin so much earlier, to have a state by then (default 1d)")
	f.StringVar(&b.nearest, "near", "", "alerts that are no further apart count as one that moved (default 15m)")
	f.IntVar(&b.q.Devices, "devices", 0, "devices to tell one by one (default 100)")
	return c
}

func (b *backtest) run(c *cobra.Command, args []string) error {
	if b.domain == "" {
		return usageError{c.CommandPath(), "say whose devices: --domain NAME"}
	}
	q := &b.q
	q.Domain, q.Device, q.WarmUp, q.Near = dunlin.DomainID(b.domain), dunlin.DeviceID(b.device), b.warmUp, b.nearest
	q.Since, q.Until = before(b.since), before(b.until)
	q.Plugin, q.Version, _ = strings.Cut(b.known, "@")
	var module []byte
	var err error
	if len(args) == 1 {
		if module, err = os.ReadFile(args[0]); err != nil {
			return err
		}
	}
	for _, doc := range []struct {
		file string
		to   *json.RawMessage
	}{{b.rules, &q.Rules}, {b.config, &q.Config}} {
		if doc.file != "" {
			if *doc.to, err = readDocument(doc.file, b.env); err != nil {
				return err
			}
		}
	}
	cl, err := b.client()
	if err != nil {
		return err
	}
	p := &progress{w: c.ErrOrStderr(), inPlace: terminal(c.ErrOrStderr()) && b.env.Getenv("TERM") != "dumb", width: columns(b.env)}
	step := 100
	if !p.inPlace {
		step = 10
	}
	rep, err := cl.Backtest(c.Context(), *q, module, func(now dunlin.BacktestProgress) {
		percent := int(now.Done*float64(step)) * 100 / step
		if !p.inPlace && percent == 0 {
			return
		}
		p.show(fmt.Sprintf("%d %%", percent) + map[bool]string{true: fmt.Sprintf(": %s readings, %s alerts, %s inputs failed", thousands(now.Readings),
			thousands(now.Alerts), thousands(now.Failed))}[p.inPlace])
	})
	p.end()
	if err != nil {
		var problem *client.Error
		if errors.As(err, &problem) && problem.Check != "" {
			return fmt.Errorf("the module was refused (%s): %s", problem.Check, problem.Detail)
		}
		return b.explain(err)
	}
	return b.out.print(c, rep, func(w io.Writer) { reportTable(w, rep) })
}

// before makes "30d" a span before now; a moment stays one.
func before(s string) string {
	if s == "" || s == "now" || s[0] == '-' || strings.Contains(s, "T") {
		return s
	}
	return "-" + s
}

// readDocument reads a file of JSON or YAML as JSON. Rules may stand under "rules:".
func readDocument(file string, env Env) (json.RawMessage, error) {
	b, err := readFile(file, env)
	if err != nil {
		return nil, err
	}
	var doc any
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if m, ok := doc.(map[string]any); ok && len(m) == 1 && m["rules"] != nil {
		doc = m["rules"]
	}
	out, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return out, nil
}

// thousands writes a number as people read it.
func thousands(n uint64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func reportTable(w io.Writer, r *dunlin.BacktestReport) {
	a := &r.Alerts
	row(w, "domain", string(r.Domain)+", stage "+r.Stage)
	row(w, "candidate", r.Candidate.String()[:12]+", "+string(r.Mode)+", against what was "+map[string]string{"recorded": "recorded", "re-run": "deployed, run again"}[r.Against])
	row(w, "compared", clock(r.Since)+" to "+clock(r.Until)+reach(r))
	row(w, "devices", thousands(uint64(r.Devices))+" with "+thousands(r.Inputs)+" inputs, "+thousands(r.Readings)+" readings")
	row(w, "alerts", fmt.Sprintf("%s recorded, %s of the candidate", thousands(a.Recorded), thousands(a.Candidate)))
	row(w, "  same", thousands(a.Same))
	row(w, "  added", thousands(a.Added))
	row(w, "  removed", thousands(a.Removed))
	row(w, "  moved", thousands(a.Moved))
	row(w, "  severity", thousands(a.Changed)+" changed")
	k := &r.Cost
	per := func(n uint64) string { return thousands(n / max(k.Inputs, 1)) }
	row(w, "cost", fmt.Sprintf("%s fuel and %s ns an input", per(k.Fuel), per(k.Nanos)))
	row(w, "failed", thousands(k.Failed)+" of "+thousands(k.Inputs)+" inputs")
	for i := range r.Failures {
		f := &r.Failures[i]
		row(w, "  "+thousands(f.Inputs), cut(f.Reason, 100)+" (first "+string(f.Device)+", "+clock(f.At)+")")
	}
	if x := r.Exact; x != nil {
		row(w, "repeated", fmt.Sprintf("%s turns, %s came to something else", thousands(x.Turns), thousands(x.Different)))
		for _, d := range x.Differences {
			row(w, "", cut(d, 160))
		}
	}
	row(w, "took", time.Duration(r.Took).Round(10*time.Millisecond).String())
	for _, m := range r.Missing {
		row(w, "missing", fmt.Sprintf("shard %d: %s", m.Shard, m.Reason))
	}
	if len(r.ByDevice) == 0 {
		return
	}
	fmt.Fprintln(w)
	row(w, "DEVICE", "DIFFERENCE", "ALERT", "RECORDED", "CANDIDATE", "BY")
	for i := range r.ByDevice {
		deviceRows(w, &r.ByDevice[i])
	}
}

// reach says how far back the recording goes, if that is less than was asked for.
func reach(r *dunlin.BacktestReport) string {
	switch {
	case r.Reaches == 0:
		return "; nothing is recorded"
	case r.Reaches > r.Since:
		return "; the recording reaches back to " + clock(r.Reaches) + " only"
	}
	return ""
}

func deviceRows(w io.Writer, d *dunlin.BacktestDevice) {
	for i := range d.Differences {
		x := &d.Differences[i]
		alert := x.Rule
		if x.Key != "" {
			alert += "/" + x.Key
		}
		by := ""
		if x.Recorded != nil && x.Candidate != nil {
			by = x.Candidate.RaisedAt.Sub(x.Recorded.RaisedAt).Round(time.Second).String()
			if !strings.HasPrefix(by, "-") {
				by = "+" + by
			}
		}
		row(w, string(d.Device), x.Kind, alert, occurrence(x.Recorded), occurrence(x.Candidate), by)
	}
	a := &d.Alerts
	if n := a.Added + a.Removed + a.Moved + a.Changed; n > uint64(len(d.Differences)) {
		row(w, string(d.Device), fmt.Sprintf("and %s more", thousands(n-uint64(len(d.Differences)))), "", "", "", "")
	}
}

func occurrence(o *dunlin.BacktestOccurrence) string {
	if o == nil {
		return ""
	}
	s := o.Severity.String() + " " + clock(o.RaisedAt) + " to "
	if o.ClearedAt == 0 {
		return s + "the end"
	}
	if o.ClearedAt.Std().Format(time.DateOnly) == o.RaisedAt.Std().Format(time.DateOnly) {
		return s + o.ClearedAt.Std().Format("15:04:05Z")
	}
	return s + clock(o.ClearedAt)
}
