package device

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
)

// TestLaws plays random lives of a device and checks after each step what must hold:
//   - Apply equals the store's fold of the same change (DeltaOf, Merge), field by field and in the same order;
//   - sequence numbers have neither holes nor doubles, and every uplink is answered exactly once, with its own;
//   - the state keeps within its bounds;
//   - a condition is raised only when it is not active, and cleared and updated only when it is;
//   - each command has exactly one result, and while it waits its deadline is armed, and nothing else is of a plugin's name.
func TestLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := life{t: t, open: map[*dunlin.Uplink]bool{}, cmds: map[string]bool{}, now: 1e12}
		l.key = dunlin.DeviceKey{Tenant: "t", Device: "d"}
		l.m = Make(dunlin.DeviceState{DeviceKey: l.key})
		l.model = dunlin.DeviceState{DeviceKey: l.key}
		for range rapid.IntRange(1, 40).Draw(t, "turns") {
			l.turn()
		}
		u, n := l.m.Release()
		for ; u != nil; u = u.Next {
			delete(l.open, u)
			n--
		}
		if n != 0 || len(l.open) != 0 {
			t.Fatalf("%d uplinks never came out, and %d more released than there were", len(l.open), n)
		}
	})
}

type life struct {
	t     *rapid.T
	key   dunlin.DeviceKey
	m     Machine
	model dunlin.DeviceState
	now   dunlin.Time
	seq   uint64
	made  uint32
	cmds  map[string]bool // by id; true: waits
	open  map[*dunlin.Uplink]bool
}

func (l *life) uplink() *dunlin.Uplink {
	u := &dunlin.Uplink{DeviceKey: l.key}
	u.Kind, u.Received = dunlin.InputTelemetry, l.now
	u.Flags = dunlin.FlagMayRepeat
	u.MessageID = rapid.Uint64Range(0, 60).Draw(l.t, "id")
	if cs := l.model.Commands; len(cs) > 0 && rapid.IntRange(0, 2).Draw(l.t, "answer?") == 0 {
		u.Kind, u.Timer = dunlin.InputResult, cs[rapid.IntRange(0, len(cs)-1).Draw(l.t, "of")].ID
	}
	for range rapid.IntRange(0, 3).Draw(l.t, "records") {
		u.Records = append(u.Records, l.record())
	}
	l.open[u] = true
	return u
}

func (l *life) record() dunlin.Record {
	r := dunlin.Record{Metric: fmt.Sprint("m", rapid.IntRange(0, 5).Draw(l.t, "metric")), Kind: dunlin.Number,
		Time: l.now + dunlin.Time(rapid.Int64Range(-3, 3).Draw(l.t, "late")), Num: rapid.Float64Range(-9, 9).Draw(l.t, "v")}
	if rapid.IntRange(0, 9).Draw(l.t, "text?") == 0 {
		r.Kind, r.Str, r.Num = dunlin.Text, rapid.StringN(0, 5, 5).Draw(l.t, "text"), 0
	}
	return r
}

func (l *life) outcome(inputs int) *dunlin.Outcome {
	out := &dunlin.Outcome{}
	if rapid.IntRange(0, 9).Draw(l.t, "fail?") == 0 {
		out.Failure = "trap"
		return out
	}
	if rapid.Bool().Draw(l.t, "state?") {
		out.State = []byte(rapid.StringN(0, 8, 8).Draw(l.t, "state"))
	}
	for range rapid.IntRange(0, 2).Draw(l.t, "derived") {
		out.Records = append(out.Records, l.record())
	}
	for range rapid.IntRange(0, 4).Draw(l.t, "signals") {
		out.Signals = append(out.Signals, dunlin.AlertSignal{Input: rapid.IntRange(-1, inputs).Draw(l.t, "input"),
			Raise: rapid.Bool().Draw(l.t, "raise"), Text: rapid.SampledFrom([]string{"", "a", "b"}).Draw(l.t, "says"), Rule: fmt.Sprint("r", rapid.IntRange(0, 70).Draw(l.t, "rule")%rapid.SampledFrom([]int{2, 71}).Draw(l.t, "rules")),
			Severity: dunlin.Severity(rapid.IntRange(1, 4).Draw(l.t, "severity"))})
		s := &out.Signals[len(out.Signals)-1]
		s.Update = !s.Raise && rapid.Bool().Draw(l.t, "update")
	}
	for range rapid.SampledFrom([]int{0, 0, 0, 1, 2, 20}).Draw(l.t, "commands") {
		out.Commands = append(out.Commands, dunlin.Command{Name: "x", Payload: []byte("p"),
			Deadline: l.now + dunlin.Time(rapid.Int64Range(-1e6, 5e8).Draw(l.t, "deadline"))})
	}
	for range rapid.IntRange(0, 1).Draw(l.t, "publications") {
		out.Publish = append(out.Publish, dunlin.Publication{Topic: "x/y"})
	}
	for range rapid.SampledFrom([]int{0, 0, 0, 2}).Draw(l.t, "refusals") {
		out.Refused = append(out.Refused, dunlin.InputError{Input: rapid.IntRange(-1, inputs).Draw(l.t, "refused"), Reason: "no"})
	}
	for range rapid.IntRange(0, 3).Draw(l.t, "timers") {
		due := dunlin.Time(0)
		if rapid.Bool().Draw(l.t, "arm") {
			due = l.now + dunlin.Time(rapid.Int64Range(-1e6, 1e7).Draw(l.t, "due"))
		}
		out.Timers = append(out.Timers, dunlin.TimerSet{Name: fmt.Sprint("t", rapid.IntRange(0, 20).Draw(l.t, "timer")), Due: due})
	}
	return out
}

func (l *life) accept(u *dunlin.Uplink, taken *[]*dunlin.Uplink) {
	v, r := l.m.Accept(u, &Rules{Domain: "plain", Register: true})
	switch v {
	case Taken:
		*taken = append(*taken, u)
	case Answered:
		if u.Kind == dunlin.InputResult && errors.Is(r.Err, dunlin.ErrNotFound) {
			delete(l.open, u)
			return
		}
		if !r.Duplicate || r.Seq == 0 || r.Seq > l.seq {
			l.t.Fatalf("answered with %+v at seq %d", r, l.seq)
		}
		delete(l.open, u)
	}
}

func (l *life) turn() {
	l.now += dunlin.Time(rapid.SampledFrom([]int64{1, 1e6, 4e8}).Draw(l.t, "pause"))
	var taken []*dunlin.Uplink
	fired := 0
	for _, armed := range append([]dunlin.TimerSet(nil), l.m.State().Timers...) {
		if armed.Due <= l.now && l.m.Fire(dunlin.DueTimer{DeviceKey: l.key, Name: armed.Name, Due: armed.Due}) {
			fired++
		}
	}
	for range rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(l.t, "occurs") {
		l.m.Occur(dunlin.Input{Kind: dunlin.InputLifecycle, Received: l.now})
		fired++
	}
	waiting, _ := l.m.Release()
	for waiting != nil {
		next := waiting.Next
		l.accept(waiting, &taken)
		waiting = next
	}
	for range rapid.IntRange(0, 40).Draw(l.t, "burst") % rapid.SampledFrom([]int{3, 41}).Draw(l.t, "bursts") {
		l.accept(l.uplink(), &taken)
	}
	if l.m.Phase() != Gathering {
		return
	}
	c := dunlin.Change{Alerts: make([]dunlin.Alert, 3), Timers: make([]dunlin.TimerSet, 1)} // leftovers of a turn before
	l.m.Propose(&c, l.m.Inputs(nil))
	active := map[string]dunlin.Alert{}
	for _, a := range l.model.Alerts {
		active[a.Rule] = a
	}
	if rapid.IntRange(0, 5).Draw(l.t, "switch?") == 0 {
		l.made++
	}
	for i := range rapid.IntRange(0, 3).Draw(l.t, "stages") {
		l.m.StageOf(&c, &Origin{Stage: uint8(i), Now: l.now, Made: dunlin.Made{Module: l.made}, Effects: true}, l.outcome(len(c.Inputs)))
	}
	l.checkAlerts(&c, active)
	l.checkStages(&c)
	for range rapid.IntRange(0, 2).Draw(l.t, "meanwhile") {
		l.accept(l.uplink(), &taken)
	}
	if rapid.IntRange(0, 4).Draw(l.t, "abort?") == 0 {
		l.answers(l.m.Abort(dunlin.Receipt{Err: dunlin.ErrUnavailable}), nil, 0)
		return
	}
	delta := dunlin.DeltaOf(clone(&c))
	l.model.Merge(&delta, true)
	answers := l.m.Apply(&c)
	l.same()
	l.checkCommands(&c)
	l.seq += uint64(len(c.Inputs))
	l.answers(answers, taken, c.Seq(fired))
}

func (l *life) checkAlerts(c *dunlin.Change, active map[string]dunlin.Alert) {
	for i := range c.Alerts {
		a := &c.Alerts[i]
		was, on := active[a.Rule]
		switch {
		case a.State == dunlin.AlertCleared && !on, on && (a.RaisedSeq != was.RaisedSeq || a.RaisedAt != was.RaisedAt),
			!on && a.RaisedSeq != a.Seq, on && a.State != dunlin.AlertCleared && a.Severity == was.Severity && a.Text == was.Text:
			l.t.Fatalf("transition %+v of an alert that was active: %v, %+v", a, on, was)
		case a.State == dunlin.AlertCleared:
			delete(active, a.Rule)
		default:
			active[a.Rule] = *a
		}
	}
	if len(active) > dunlin.AlertsPerDeviceMax {
		l.t.Fatalf("%d active alerts", len(active))
	}
}

// checkStages looks at what a change says of its plugins.
func (l *life) checkStages(c *dunlin.Change) {
	for i := range c.Stages {
		st := &c.Stages[i]
		if st.StateSet != (st.Made != dunlin.Made{}) && l.made != 0 || st.Failure != "" && (len(st.Refused) > 0 || st.StateSet) {
			l.t.Fatalf("stage %+v", st)
		}
		for k, r := range st.Refused {
			if r.Input < 0 || r.Input >= len(c.Inputs) || k > 0 && r.Input == st.Refused[0].Input {
				l.t.Fatalf("%d inputs, refused %+v", len(c.Inputs), st.Refused)
			}
		}
	}
}

// checkCommands follows the commands of a committed change.
func (l *life) checkCommands(c *dunlin.Change) {
	for i := range c.Inputs {
		if in := &c.Inputs[i]; in.Kind == dunlin.InputResult {
			if !l.cmds[in.Timer] {
				l.t.Fatalf("result of command %s, which does not wait", in.Timer)
			}
			l.cmds[in.Timer] = false
		}
	}
	for _, cmd := range c.Commands {
		if _, known := l.cmds[cmd.ID]; known || cmd.Deadline <= l.now {
			l.t.Fatalf("command %+v at %d", cmd, l.now)
		}
		l.cmds[cmd.ID] = true
	}
	s, own := l.m.State(), 0
	for _, t := range s.Timers {
		if strings.HasPrefix(t.Name, ownTimer) {
			own++
		}
	}
	for _, cmd := range s.Commands {
		if !l.cmds[cmd.ID] || l.m.armed(ownTimer+cmd.ID) != cmd.Deadline {
			l.t.Fatalf("command %+v waits: %v, deadline armed for %d", cmd, l.cmds[cmd.ID], l.m.armed(ownTimer+cmd.ID))
		}
	}
	if own != len(s.Commands) || own > dunlin.CommandsPerDeviceMax || len(s.Timers)-own > dunlin.TimersPerDeviceMax {
		l.t.Fatalf("%d commands, %d deadlines, %d timers", len(s.Commands), own, len(s.Timers))
	}
}

func (l *life) answers(as Answers, taken []*dunlin.Uplink, seq uint64) {
	for i := 0; ; i++ {
		u, r := as.Next()
		if u == nil {
			return
		}
		if !l.open[u] {
			l.t.Fatal("an uplink was answered twice")
		}
		delete(l.open, u)
		switch {
		case taken == nil && !errors.Is(r.Err, dunlin.ErrUnavailable):
			l.t.Fatalf("after an abort: %+v", r)
		case taken != nil && !r.Duplicate && (taken[i] != u || r.Seq != seq+uint64(i)):
			l.t.Fatalf("answer %d: seq %d, want %d of the uplink taken then", i, r.Seq, seq+uint64(i))
		}
	}
}

// same compares the machine's state with the fold of all changes.
func (l *life) same() {
	a, b := fields(l.m.State()), fields(&l.model)
	if a != b {
		l.t.Fatalf("Apply and Merge differ:\n%s\n%s", a, b)
	}
	if cap(l.m.State().Seen) > 2*dunlin.SeenMax {
		l.t.Fatalf("room for %d messages", cap(l.m.State().Seen))
	}
}

// fields renders a state; as a whole it would print as its key, whose String it has.
func fields(s *dunlin.DeviceState) string {
	return fmt.Sprintf("%s %q %d %d %+v %v %+v %+v %+v %+v", s.DeviceKey, s.Domain, s.Version, s.SeenAt, s.Reported, s.Plugins,
		s.Alerts, s.Timers, s.Seen, s.Commands)
}

// clone copies what DeltaOf and Merge would take over.
func clone(c *dunlin.Change) *dunlin.Change {
	d := *c
	d.Alerts = append([]dunlin.Alert(nil), c.Alerts...)
	d.Timers = append([]dunlin.TimerSet(nil), c.Timers...)
	d.Inputs = append([]dunlin.Input(nil), c.Inputs...)
	d.Stages = append([]dunlin.StageResult(nil), c.Stages...)
	return &d
}

// BenchmarkTurn is one device's turn with four metrics, a plugin state and a timer: what a reading costs in here.
func BenchmarkTurn(b *testing.B) {
	m := Make(dunlin.DeviceState{DeviceKey: dunlin.DeviceKey{Tenant: "t", Device: "d"}, Domain: "plain"})
	r := &Rules{Domain: "plain"}
	u := &dunlin.Uplink{DeviceKey: m.Key()}
	u.Kind = dunlin.InputTelemetry
	for _, metric := range []string{"temperature", "humidity", "battery", "rssi"} {
		u.Records = append(u.Records, dunlin.Record{Metric: metric, Unit: "x", Kind: dunlin.Number})
	}
	var c dunlin.Change
	inputs := make([]dunlin.Input, 0, 1)
	out := &dunlin.Outcome{State: make([]byte, 48), Timers: []dunlin.TimerSet{{Name: "silence"}}}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		u.MessageID, u.Received = rand.Uint64(), dunlin.Time(i+1)*1e6
		for j := range u.Records {
			u.Records[j].Time = u.Received
		}
		out.State[i%48]++
		out.Timers[0].Due = u.Received + 3e8
		if v, _ := m.Accept(u, r); v != Taken {
			b.Fatal(v)
		}
		m.Propose(&c, m.Inputs(inputs))
		m.Stage(&c, 0, dunlin.ModuleHash{}, out, u.Received)
		a := m.Apply(&c)
		a.Next()
	}
	b.ReportMetric(float64(m.Bytes()), "B/device")
}
