package dunlin

import "time"

// Bounds of what one device may hold.
const (
	MetricsPerDeviceMax  = 256             // distinct metrics in a device's twin
	AlertsPerDeviceMax   = 64              // active alerts
	TimersPerDeviceMax   = 16              // armed timers of plugins
	CommandsPerDeviceMax = 32              // commands that wait for their answer
	SeenMax              = 32              // message ids in the dedupe window
	SeenMin              = 8               // of these, kept whatever their age
	SeenAge              = 5 * time.Minute // CoAP's EXCHANGE_LIFETIME is 247 s (RFC 7252 §4.8.2)
)

// DeviceState is all that a device's cell needs to live: what activation reads from the store. The same type serves as a
// delta: DeltaOf makes one of a Change, Merge folds a newer one into an older one, and folding is associative, so that a
// store may keep deltas and fold them later. Slices are small (see the bounds) and searched in order.
type DeviceState struct {
	DeviceKey
	Domain   DomainID // "" in a delta: unchanged
	Version  uint64
	SeenAt   Time          // Received of the newest input from outside
	Reported []Record      // newest record of each metric by Time, which is at most its receipt; at equal times the later input wins
	Plugins  []StageState  // by stage; in a delta the new ones
	Alerts   []Alert       // active ones; in a delta also cleared ones, which remove
	Timers   []TimerSet    // armed ones; in a delta also Due 0, which removes
	Seen     []SeenMessage // dedupe window, oldest first
	Commands []Command     // that wait for their answer; in a delta also Deadline 0, which removes
}

// StageState is a plugin's state of a device.
type StageState struct {
	Stage uint8
	State []byte
	Made  Made
}

// SeenMessage is a message id in the dedupe window.
type SeenMessage struct {
	ID  uint64
	At  Time
	Seq uint64
}

// DueTimer is an armed timer as a shard's timer index has it.
type DueTimer struct {
	DeviceKey
	Name string
	Due  Time
}

// DeltaOf returns what c changes in its device's state. It shares c's memory.
func DeltaOf(c *Change) DeviceState {
	var d DeviceState
	d.SetDelta(c)
	return d
}

// SetDelta makes d what DeltaOf returns, in the memory that d has.
func (d *DeviceState) SetDelta(c *Change) {
	*d = DeviceState{DeviceKey: c.DeviceKey, Domain: c.Domain, Version: c.Version, Alerts: c.Alerts,
		Reported: d.Reported[:0], Plugins: d.Plugins[:0], Timers: d.Timers[:0], Seen: d.Seen[:0], Commands: d.Commands[:0]}
	var latest Time
	for i := range c.Inputs {
		in := &c.Inputs[i]
		latest = max(latest, in.Received)
		if in.Kind == InputTimer {
			d.setTimer(TimerSet{Name: in.Timer, Was: in.Received}, true)
			continue
		}
		if in.Kind == InputResult {
			d.setCommand(Command{ID: in.Timer}, true)
		}
		if !in.Outside() {
			continue
		}
		d.SeenAt = max(d.SeenAt, in.Received)
		if in.MessageID != 0 {
			d.Seen = append(d.Seen, SeenMessage{ID: in.MessageID, At: in.Received, Seq: c.Seq(i)})
		}
		for _, r := range in.Records {
			d.report(r.Until(in.Received))
		}
	}
	for i := range c.Stages {
		st := &c.Stages[i]
		if st.StateSet {
			d.Plugins = append(d.Plugins, StageState{Stage: st.Stage, State: st.State, Made: st.Made})
		}
		for _, r := range st.Records {
			d.report(r.Until(latest))
		}
	}
	for _, t := range c.Timers {
		d.setTimer(t, true)
	}
	for _, cmd := range c.Commands {
		d.setCommand(cmd, true)
	}
}

// Merge folds the newer delta into s. With final set, s is a whole state afterwards: cleared alerts and cancelled timers
// are gone; otherwise they stay, to be folded into an older state later. s takes newer's memory over.
func (s *DeviceState) Merge(newer *DeviceState, final bool) {
	if s.Device == "" {
		s.DeviceKey = newer.DeviceKey
	}
	if newer.Domain != "" {
		s.Domain = newer.Domain
	}
	s.Version = max(s.Version, newer.Version)
	s.SeenAt = max(s.SeenAt, newer.SeenAt)
	for _, r := range newer.Reported {
		s.report(r)
	}
	for _, p := range newer.Plugins {
		s.setPlugin(p)
	}
	for i := range newer.Alerts {
		s.setAlert(&newer.Alerts[i], final)
	}
	for _, t := range newer.Timers {
		s.setTimer(t, !final)
	}
	for _, c := range newer.Commands {
		s.setCommand(c, !final)
	}
	s.Seen = append(s.Seen, newer.Seen...)
	s.trimSeen()
}

// Until returns r with a Time of at most t. In a twin a record counts from its receipt at the latest: otherwise one reading
// of a clock a year ahead would stand there for a year. History keeps the device's own time.
func (r Record) Until(t Time) Record {
	r.Time = min(r.Time, t)
	return r
}

func (s *DeviceState) report(r Record) {
	for i := range s.Reported {
		if s.Reported[i].Metric == r.Metric {
			if r.Time >= s.Reported[i].Time {
				s.Reported[i] = r
			}
			return
		}
	}
	s.Reported = append(s.Reported, r)
}

func (s *DeviceState) setPlugin(p StageState) {
	for i := range s.Plugins {
		if s.Plugins[i].Stage == p.Stage {
			s.Plugins[i] = p
			return
		}
	}
	s.Plugins = append(s.Plugins, p)
}

func (s *DeviceState) setAlert(a *Alert, final bool) {
	drop := final && a.State == AlertCleared
	for i := range s.Alerts {
		if s.Alerts[i].Rule == a.Rule && s.Alerts[i].Key == a.Key {
			if drop {
				s.Alerts = append(s.Alerts[:i:i], s.Alerts[i+1:]...)
			} else {
				s.Alerts = append(s.Alerts[:i:i], s.Alerts[i:]...) // unshare: the slice may be a Change's
				s.Alerts[i] = *a
			}
			return
		}
	}
	if !drop {
		s.Alerts = append(s.Alerts[:len(s.Alerts):len(s.Alerts)], *a)
	}
}

func (s *DeviceState) setTimer(t TimerSet, keepCancelled bool) {
	drop := t.Due == 0 && !keepCancelled
	for i := range s.Timers {
		if s.Timers[i].Name == t.Name {
			if drop {
				s.Timers = append(s.Timers[:i], s.Timers[i+1:]...)
			} else {
				s.Timers[i] = t
			}
			return
		}
	}
	if !drop {
		s.Timers = append(s.Timers, t)
	}
}

func (s *DeviceState) setCommand(c Command, keepAnswered bool) {
	drop := c.Deadline == 0 && !keepAnswered
	for i := range s.Commands {
		if s.Commands[i].ID == c.ID {
			if drop {
				s.Commands = append(s.Commands[:i], s.Commands[i+1:]...)
			} else {
				s.Commands[i] = c
			}
			return
		}
	}
	if !drop {
		s.Commands = append(s.Commands, c)
	}
}

// trimSeen keeps the newest SeenMax messages, and of those older than SeenAge (against the newest) only the last SeenMin.
func (s *DeviceState) trimSeen() {
	n := len(s.Seen)
	if n == 0 {
		return
	}
	newest := s.Seen[n-1].At
	drop := max(0, n-SeenMax)
	for drop < n-SeenMin && newest.Sub(s.Seen[drop].At) > SeenAge {
		drop++
	}
	if drop > 0 {
		s.Seen = append(s.Seen[:0], s.Seen[drop:]...)
	}
}

// Lookup finds a message in the dedupe window.
func (s *DeviceState) Lookup(id uint64) (SeenMessage, bool) {
	for i := len(s.Seen) - 1; i >= 0; i-- {
		if s.Seen[i].ID == id {
			return s.Seen[i], true
		}
	}
	return SeenMessage{}, false
}

// Twin renders the state for people.
func (s *DeviceState) Twin() *Twin {
	t := &Twin{Tenant: s.Tenant, Device: s.Device, Domain: s.Domain, Version: s.Version, SeenAt: s.SeenAt,
		Reported: make(map[string]Reported, len(s.Reported)), Alerts: append([]Alert(nil), s.Alerts...)}
	for _, r := range s.Reported {
		t.Reported[r.Metric] = Reported{Value: r.Value(), Unit: r.Unit, At: r.Time}
	}
	for _, p := range s.Plugins {
		t.Plugins = append(t.Plugins, PluginState{Stage: int(p.Stage), State: p.State})
	}
	t.Commands = append(t.Commands, s.Commands...)
	SortCommands(t.Commands)
	return t
}

// Value returns the record's value as float64, bool, string or []byte.
func (r *Record) Value() any {
	switch r.Kind {
	case Boolean:
		return r.Num != 0
	case Text:
		return r.Str
	case Data:
		return []byte(r.Str)
	}
	return r.Num
}
