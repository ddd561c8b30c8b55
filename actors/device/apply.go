package device

import (
	"fmt"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

// Answers are the uplinks of a turn that has ended, with their receipts; Next takes one after the other.
type Answers struct {
	turn, repeats chain
	receipt       dunlin.Receipt // of the next uplink
	state         *dunlin.DeviceState
}

// Next returns the next uplink and its receipt; nil at the end. All must be taken before the machine's next Apply.
func (a *Answers) Next() (*dunlin.Uplink, dunlin.Receipt) {
	if u := a.turn.pop(); u != nil {
		r := a.receipt
		if r.Err == nil {
			a.receipt.Seq++
			a.receipt.Created = false // it was the first uplink that did it
		}
		return u, r
	}
	u := a.repeats.pop()
	if u == nil || a.receipt.Err != nil {
		return u, a.receipt
	}
	seen, _ := a.state.Lookup(u.MessageID) // not found: more ids in one turn than the window holds
	return u, dunlin.Receipt{Seq: seen.Seq, Duplicate: true}
}

// Abort gives the turn up, whether it was proposed or not, and returns its uplinks, each with the same receipt.
// The machine is as it was before; whether that is still the truth the caller must know.
func (m *Machine) Abort(r dunlin.Receipt) Answers {
	a := Answers{turn: m.turn, repeats: m.repeats, receipt: r}
	m.end()
	return a
}

func (m *Machine) end() {
	m.turn, m.repeats, m.fired, m.extra, m.fresh, m.phase, m.joining = chain{}, chain{}, nil, nil, 0, Idle, ""
}

// Apply makes the committed change the device's state, exactly as DeviceState.Merge(DeltaOf(c)) does, but without the
// garbage of a delta: this runs once for each uplink. It keeps nothing of c but strings.
func (m *Machine) Apply(c *dunlin.Change) Answers {
	m.mustBe(Committing)
	s := &m.state
	if c.Version != s.Version+uint64(len(c.Inputs)) {
		panic(fmt.Sprintf("device %s: version %d is followed by a change to %d of %d inputs",
			s.DeviceKey, s.Version, c.Version, len(c.Inputs)))
	}
	a := Answers{turn: m.turn, repeats: m.repeats, state: s}
	a.receipt = dunlin.Receipt{Seq: s.Version + uint64(len(m.fired)+m.happened()) + 1, Created: c.Created}
	if c.Domain != "" {
		s.Domain = c.Domain
	}
	s.Version = c.Version
	m.makeRoom(c)
	var latest dunlin.Time
	for i := range c.Inputs {
		m.input(c, i)
		latest = max(latest, c.Inputs[i].Received)
	}
	for i := range c.Stages {
		st := &c.Stages[i]
		if st.StateSet {
			m.setPlugin(st)
		}
		for j := range st.Records {
			m.report(&st.Records[j], latest)
		}
	}
	if len(c.Alerts) > 0 {
		s.Merge(&dunlin.DeviceState{Alerts: c.Alerts}, true)
	}
	for i := range c.Timers {
		m.setTimer(c.Timers[i])
	}
	for i := range c.Commands {
		m.addCommand(&c.Commands[i])
	}
	m.trimSeen()
	m.end()
	return a
}

// makeRoom grows the slices once where they would otherwise double their way up, and drops what the dedupe window will
// lose anyway, so that it never needs more room than its bound.
func (m *Machine) makeRoom(c *dunlin.Change) {
	s := &m.state
	if s.Reported == nil {
		n := 0
		for i := range c.Inputs {
			n = max(n, len(c.Inputs[i].Records))
		}
		for i := range c.Stages {
			n += len(c.Stages[i].Records)
		}
		s.Reported = make([]dunlin.Record, 0, min(n, dunlin.MetricsPerDeviceMax))
	}
	ids := 0
	for i := range c.Inputs {
		if c.Inputs[i].MessageID != 0 && c.Inputs[i].Outside() {
			ids++
		}
	}
	if over := len(s.Seen) + ids - dunlin.SeenMax; over > 0 {
		s.Seen = append(s.Seen[:0], s.Seen[min(over, len(s.Seen)):]...)
	}
}

func (m *Machine) input(c *dunlin.Change, i int) {
	s, in := &m.state, &c.Inputs[i]
	if in.Kind == dunlin.InputTimer {
		if indexTimer(c.Timers, in.Timer) < 0 {
			m.setTimer(dunlin.TimerSet{Name: in.Timer})
		}
		return
	}
	if in.Kind == dunlin.InputResult {
		m.dropCommand(in.Timer)
	}
	if !in.Outside() {
		return
	}
	s.SeenAt = max(s.SeenAt, in.Received)
	if in.MessageID != 0 {
		s.Seen = append(s.Seen, dunlin.SeenMessage{ID: in.MessageID, At: in.Received, Seq: c.Seq(i)})
	}
	for j := range in.Records {
		m.report(&in.Records[j], in.Received)
	}
}

// report keeps the newest record of a metric, which counts from its receipt at the latest (dunlin.Record.Until).
func (m *Machine) report(r *dunlin.Record, receipt dunlin.Time) {
	s := &m.state
	at := min(r.Time, receipt)
	for i := range s.Reported {
		old := &s.Reported[i]
		if old.Metric != r.Metric {
			continue
		}
		if at < old.Time {
			return
		}
		str := old.Str
		if str != r.Str { // a text may be a piece of a whole payload, which must not live as long as the twin
			str = strings.Clone(r.Str)
		}
		*old = *r
		old.Str, old.Time = str, at
		return
	}
	s.Reported = append(s.Reported, *r)
	last := &s.Reported[len(s.Reported)-1]
	last.Str, last.Time = strings.Clone(r.Str), at
}

func (m *Machine) setPlugin(st *dunlin.StageResult) {
	if p := m.plugin(st.Stage); p != nil {
		p.State, p.Made = append(p.State[:0], st.State...), st.Made
		return
	}
	m.state.Plugins = append(m.state.Plugins, dunlin.StageState{Stage: st.Stage, State: append([]byte(nil), st.State...), Made: st.Made})
}

func (m *Machine) setTimer(t dunlin.TimerSet) {
	s := &m.state
	i := indexTimer(s.Timers, t.Name)
	switch {
	case t.Due == 0 && i >= 0:
		s.Timers = append(s.Timers[:i], s.Timers[i+1:]...)
	case t.Due == 0:
	case i >= 0:
		s.Timers[i] = t
	default:
		s.Timers = append(s.Timers, t)
	}
}

// trimSeen keeps what DeviceState keeps of the dedupe window.
func (m *Machine) trimSeen() {
	s := &m.state
	n := len(s.Seen)
	if n == 0 {
		return
	}
	newest := s.Seen[n-1].At
	drop := max(0, n-dunlin.SeenMax)
	for drop < n-dunlin.SeenMin && newest.Sub(s.Seen[drop].At) > dunlin.SeenAge {
		drop++
	}
	if drop > 0 {
		s.Seen = append(s.Seen[:0], s.Seen[drop:]...)
	}
}
