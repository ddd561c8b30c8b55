package rules

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"github.com/dunlin-iot/dunlin"
)

// run is one device's turn.
type run struct {
	set    *Set
	work   *dunlin.Work
	mem    *memory
	prefix string // of its timers
	at     dunlin.Time
	input  int
	cost   uint64
}

// Run works off one device's inputs and fills in work.Outcome. Stage is the stage's name: it tells its timers from those of
// other stages. An expression that fails on a reading, such as a comparison of a text with a number, refuses that input.
func (s *Set) Run(stage string, work *dunlin.Work) {
	mem, err := s.load(work.State)
	if err != nil {
		work.Outcome = dunlin.Outcome{Failure: "rules: " + err.Error()}
		return
	}
	work.Outcome = dunlin.Outcome{}
	r := &run{set: s, work: work, mem: mem, prefix: "rule:" + stage + ":"}
	for i := range work.Inputs {
		in := &work.Inputs[i]
		r.input = i
		var err error
		switch in.Kind {
		case dunlin.InputTelemetry:
			err = r.telemetry(in.Records)
		case dunlin.InputTimer:
			if name, ours := strings.CutPrefix(in.Timer, r.prefix); ours {
				r.at = in.Received
				err = r.timer(name)
			}
		}
		if err != nil {
			work.Outcome.Refused = append(work.Outcome.Refused, dunlin.InputError{Input: i, Reason: err.Error()})
		}
	}
	work.Outcome.FuelUsed = r.cost
	if state := s.save(mem); !bytes.Equal(state, work.State) && (len(work.State) > 0 || len(state) > 3) {
		work.Outcome.State = state
	}
}

// telemetry takes readings in: those of one time together, then the rules that they concern.
func (r *run) telemetry(records []dunlin.Record) error {
	for len(records) > 0 {
		n, touched := 1, r.take(&records[0])
		for ; n < len(records) && records[n].Time == records[0].Time; n++ {
			touched |= r.take(&records[n])
		}
		if r.at = records[0].Time; touched != 0 {
			for i := range r.set.rules {
				if err := r.step(i, touched); err != nil && !unknown(err) {
					return fmt.Errorf("rule %s: %w", r.set.rules[i].Name, err)
				}
			}
		}
		records = records[n:]
	}
	return nil
}

// unknown says that an expression asked for something that is not there yet, such as the rate after one reading: the rule is
// left as it is. CEL has no error of its own for it.
func unknown(err error) bool { return strings.Contains(err.Error(), "no such key") }

// take notes a reading and returns the bit of its metric; 0 if no rule names it, or a newer one is known.
func (r *run) take(rec *dunlin.Record) uint64 {
	i := r.set.metric(rec.Metric)
	if i < 0 || rec.Kind == dunlin.Data {
		return 0
	}
	k := &r.mem.metrics[i]
	if k.kind != 0 && rec.Time < k.at {
		return 0
	}
	if k.kind == dunlin.Number && rec.Time > k.at {
		k.beforeExists, k.before, k.beforeAt = true, k.num, k.at
	}
	k.kind, k.num, k.str, k.at = rec.Kind, rec.Num, rec.Str, rec.Time
	return 1 << i
}

// step looks at one rule after readings of the metrics in touched.
func (r *run) step(i int, touched uint64) error {
	rl := &r.set.rules[i]
	concerned := false
	for _, m := range rl.metrics {
		if r.mem.metrics[m].kind == 0 {
			return nil // nothing is known of it yet
		}
		concerned = concerned || touched&(1<<m) != 0
	}
	if !concerned {
		return nil
	}
	switch p := r.mem.phases[i]; p {
	case idle, pending:
		holds, err := r.bool(rl.when)
		if err != nil {
			return err
		}
		return r.hold(i, holds, pending, time.Duration(rl.For))
	default:
		clear, err := r.clears(rl)
		if err != nil {
			return err
		}
		return r.hold(i, clear, clearing, time.Duration(rl.ClearFor))
	}
}

func (r *run) clears(rl *rule) (bool, error) {
	if rl.clear != nil {
		return r.bool(rl.clear)
	}
	holds, err := r.bool(rl.when)
	return !holds, err
}

// hold moves a rule on: towards raising (wait is pending) or clearing. It waits for so long, or not at all.
func (r *run) hold(i int, holds bool, wait phase, long time.Duration) error {
	p := r.mem.phases[i]
	switch {
	case !holds && p == wait:
		r.set1(i, wait-1) // pending → idle, clearing → active
		r.disarm(i)
	case !holds:
	case long == 0:
		return r.turn(i, wait)
	case p != wait:
		r.set1(i, wait)
		r.work.Outcome.Timers = append(r.work.Outcome.Timers, dunlin.TimerSet{Name: r.timerName(i), Due: r.at.Add(long)})
	case r.at.Sub(r.mem.since[i]) >= long:
		r.disarm(i)
		return r.turn(i, wait)
	}
	return nil
}

// set1 puts a rule into a phase, from now on.
func (r *run) set1(i int, p phase) {
	r.mem.phases[i], r.mem.since[i] = p, 0
	if p == pending || p == clearing {
		r.mem.since[i] = r.at
	}
}

// turn raises or clears what was waited for.
func (r *run) turn(i int, waited phase) error {
	rl := &r.set.rules[i]
	sig := dunlin.AlertSignal{Input: r.input, Raise: waited == pending, Severity: rl.Severity, Rule: rl.Name}
	if rl.value != nil {
		v, err := r.eval(rl.value)
		if err != nil {
			return err
		}
		if f, ok := number(v); ok {
			sig.Value = &f
		}
	}
	if sig.Raise {
		sig.Text = r.text(rl)
		r.set1(i, active)
	} else {
		r.set1(i, idle)
	}
	r.work.Outcome.Signals = append(r.work.Outcome.Signals, sig)
	return nil
}

// timer is the end of a hold time without a reading that changed anything.
func (r *run) timer(name string) error {
	for i := range r.set.rules {
		rl := &r.set.rules[i]
		if rl.Name != name {
			continue
		}
		since := r.mem.since[i]
		switch p := r.mem.phases[i]; {
		case p == pending && r.at.Sub(since) >= time.Duration(rl.For):
			return r.turn(i, pending)
		case p == clearing && r.at.Sub(since) >= time.Duration(rl.ClearFor):
			return r.turn(i, clearing)
		}
	}
	return nil
}

func (r *run) timerName(i int) string { return r.prefix + r.set.rules[i].Name }

func (r *run) disarm(i int) {
	r.work.Outcome.Timers = append(r.work.Outcome.Timers, dunlin.TimerSet{Name: r.timerName(i)})
}

func (r *run) bool(p *program) (bool, error) {
	v, err := r.eval(p)
	if err != nil {
		return false, err
	}
	b, ok := v.(types.Bool)
	if !ok {
		return false, fmt.Errorf("the condition is %v, not true or false", v.Value())
	}
	return bool(b), nil
}

func (r *run) eval(p *program) (ref.Val, error) {
	v, det, err := p.run.Eval(activation{r})
	if det != nil {
		if c := det.ActualCost(); c != nil {
			r.cost += *c
		}
	}
	return v, err
}

func number(v ref.Val) (float64, bool) {
	switch v := v.(type) {
	case types.Double:
		return float64(v), !math.IsNaN(float64(v))
	case types.Int:
		return float64(v), true
	case types.Bool:
		if v {
			return 1, true
		}
		return 0, true
	}
	return 0, false
}

func (r *run) text(rl *rule) string {
	var b strings.Builder
	for _, p := range rl.text {
		if p.metric < 0 {
			b.WriteString(p.words)
			continue
		}
		switch k := &r.mem.metrics[p.metric]; k.kind {
		case dunlin.Number:
			b.WriteString(strconv.FormatFloat(k.num, 'g', 6, 64))
		case dunlin.Boolean:
			b.WriteString(strconv.FormatBool(k.num != 0))
		case dunlin.Text:
			b.WriteString(k.str)
		default:
			b.WriteByte('?')
		}
	}
	return b.String()
}

// activation gives an expression what it names, without a map of its own for each evaluation.
type activation struct{ r *run }

// Parent implements cel.Activation.
func (activation) Parent() cel.Activation { return nil }

// ResolveName implements cel.Activation.
func (a activation) ResolveName(name string) (any, bool) {
	switch name {
	case varNow:
		return types.Timestamp{Time: a.r.at.Std()}, true
	case varDevice:
		return types.String(a.r.work.Device), true
	case varValue, varPrevious, varRate:
		return a.r.table(name), true
	}
	i := a.r.set.metric(name)
	if i < 0 {
		return nil, false
	}
	return a.r.mem.metrics[i].val(), true
}

func (k *known) val() ref.Val {
	switch k.kind {
	case dunlin.Boolean:
		return types.Bool(k.num != 0)
	case dunlin.Text:
		return types.String(k.str)
	}
	return types.Double(k.num)
}

// table is one of the maps of metrics, as far as they are known.
func (r *run) table(name string) map[string]any {
	t := make(map[string]any, len(r.set.metrics))
	for i, m := range r.set.metrics {
		k := &r.mem.metrics[i]
		switch {
		case k.kind == 0:
		case name == varValue:
			t[m] = k.val()
		case !k.beforeExists || k.kind != dunlin.Number:
		case name == varPrevious:
			t[m] = types.Double(k.before)
		case k.at > k.beforeAt:
			t[m] = types.Double((k.num - k.before) / k.at.Sub(k.beforeAt).Minutes())
		}
	}
	return t
}
