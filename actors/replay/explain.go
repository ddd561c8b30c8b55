package replay

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/entry"
)

// Bounds of an explanation.
const (
	rebuildSpan = 24 * time.Hour      // how much earlier the device begins, to have a state by then
	rebuildMore = 14 * 24 * time.Hour // if the turn comes to something else from that state
	windowTurns = 512                 // between resets of the recording's memory
)

// occurrenceID is an alert's id, taken apart.
type occurrenceID struct {
	device    dunlin.DeviceID
	rule, key string
	seq       uint64
}

// parseAlertID reads what Alert.ID wrote. Keys may have slashes, devices and rules can't.
func parseAlertID(id string) (o occurrenceID, err error) {
	bad := fmt.Errorf("%w: alert id %.200q: want device/rule/seq or device/rule/key/seq", dunlin.ErrInvalid, id)
	parts := strings.Split(id, "/")
	if len(parts) < 3 {
		return o, bad
	}
	last := len(parts) - 1
	o.device, o.rule, o.key = dunlin.DeviceID(parts[0]), parts[1], strings.Join(parts[2:last], "/")
	if o.seq, err = strconv.ParseUint(parts[last], 10, 64); err != nil || o.device.Validate() != nil || o.rule == "" {
		return o, bad
	}
	return o, nil
}

// Explain implements dunlin.Replayer.
func (s *Service) Explain(ctx context.Context, t dunlin.Tenant, alert string) (*dunlin.Explanation, error) {
	if t == "" {
		t = dunlin.DefaultTenant
	}
	id, err := parseAlertID(alert)
	if err != nil {
		return nil, err
	}
	x, err := s.explain(ctx, t, id)
	if err != nil {
		return nil, fmt.Errorf("explain alert %s: %w", alert, err)
	}
	s.nameVersion(ctx, t, x)
	return x, nil
}

// explain finds out about an alert here, or asks a node that has its shard.
func (s *Service) explain(ctx context.Context, t dunlin.Tenant, id occurrenceID) (*dunlin.Explanation, error) {
	a, err := s.alert(ctx, t, id)
	if err != nil {
		return nil, err
	}
	sh := s.cfg.ShardOf(dunlin.DeviceKey{Tenant: t, Device: id.device})
	here, there, missing := s.places([]dunlin.ShardID{sh})
	switch {
	case len(here) > 0:
		return s.explainHere(ctx, sh, a)
	case len(missing) > 0:
		return nil, fmt.Errorf("%w: shard %d: %s", dunlin.ErrUnavailable, sh, missing[0].Reason)
	}
	for node := range there {
		body := entry.Append([]byte{callVersion}, alertEntry(sh, a))
		reply, err := s.deps.Caller.Call(ctx, node, methodExplain, body)
		if err != nil {
			return nil, fmt.Errorf("node %s: %w", node, err)
		}
		return cutExplanation(reply)
	}
	return nil, errors.ErrUnsupported // not reached: one of the three has the shard
}

// alert finds an alert's row.
func (s *Service) alert(ctx context.Context, t dunlin.Tenant, id occurrenceID) (*dunlin.Alert, error) {
	q := dunlin.AlertsQuery{Tenant: t, Device: id.device, Limit: 1000}
	for {
		page, err := s.deps.Inspector.Alerts(ctx, q)
		if err != nil {
			return nil, err
		}
		for i := range page.Alerts {
			if a := &page.Alerts[i]; a.Rule == id.rule && a.Key == id.key && a.RaisedSeq == id.seq {
				return a, nil
			}
		}
		if len(page.Missing) > 0 {
			return nil, fmt.Errorf("%w: shard %d does not answer: %s", dunlin.ErrUnavailable, page.Missing[0].Shard, page.Missing[0].Reason)
		}
		if q.Cursor = page.Next; q.Cursor == "" {
			return nil, fmt.Errorf("%w: there is no such alert", dunlin.ErrNotFound)
		}
	}
}

// nameVersion says what people call the module.
func (s *Service) nameVersion(ctx context.Context, t dunlin.Tenant, x *dunlin.Explanation) {
	if x.Plugin == "" {
		return
	}
	p, err := s.deps.Registry.Plugin(ctx, t, x.Plugin)
	if err != nil {
		return
	}
	for i := range p.Versions {
		if p.Versions[i].Hash == x.Hash {
			x.Version = p.Versions[i].Version
		}
	}
}

// explainHere runs the device's turns again, from as early as is good, up to the one that raised the alert.
func (s *Service) explainHere(ctx context.Context, sh dunlin.ShardID, a *dunlin.Alert) (*dunlin.Explanation, error) {
	rules := s.deps.Registry.Rules(a.Tenant, a.Domain)
	if rules == nil || len(rules.Stages) == 0 {
		return nil, fmt.Errorf("%w: domain %s has no pipeline any more, with which to run the turn again", dunlin.ErrConflict, a.Domain)
	}
	p, err := s.deps.Open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = p.Close() }() // what it held is memory
	s.met.explained.Inc()
	t := &task{tenant: a.Tenant, domain: a.Domain, device: a.Device, pipeline: slices.Clone(rules.Stages)}
	x, err := s.rewind(ctx, p, t, sh, a, rebuildSpan)
	if err != nil || x.Same || x.Whole || x.StateFrom == "log" {
		return x, err
	}
	if more, err := s.rewind(ctx, p, t, sh, a, rebuildMore); err == nil {
		return more, nil
	}
	return x, nil
}

// rewind runs the device's turns again from a span before the alert on.
func (s *Service) rewind(ctx context.Context, p Processor, t *task, sh dunlin.ShardID, a *dunlin.Alert, span time.Duration) (*dunlin.Explanation, error) {
	rd, err := s.deps.Past(sh, max(a.RaisedAt.Add(-span), 0), true)
	if err != nil {
		return nil, err
	}
	defer rd.Close()
	w := &rewind{alert: a, out: &dunlin.Explanation{Alert: *a, Shard: sh, Stage: -1}, repeat: newRepeat(t, p, s.cfg.Clock, &costs{})}
	return w.find(ctx, rd)
}

// rewind goes through a device's turns up to the one that raised an alert.
type rewind struct {
	alert  *dunlin.Alert
	twin   *twin
	repeat *repeat
	out    *dunlin.Explanation
	logged []bool // stages whose newest state is the one in the log
}

func (w *rewind) find(ctx context.Context, rd Reader) (*dunlin.Explanation, error) {
	var items []dunlin.FeedItem
	held := 0
	for {
		var err error
		items, err = rd.Next(items[:0])
		end := errors.Is(err, io.EOF)
		if err != nil && !end {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		for i := range items {
			done, err := w.entry(&items[i])
			if done || err != nil {
				return w.out, err
			}
			held++
		}
		if end {
			return nil, w.lost(rd, "the recording does not have its entry")
		}
		if held >= windowTurns {
			rd.Reset() // the machine keeps copies
			held = 0
		}
	}
}

func (w *rewind) lost(rd Reader, why string) error {
	reaches := "nothing is kept"
	if b, _ := rd.Begins(); b != 0 {
		reaches = "what is kept of its shard begins at " + b.String()
	}
	return fmt.Errorf("%w: %s: it was raised at %s, and %s", dunlin.ErrCursorLost, why, w.alert.RaisedAt, reaches)
}

// entry takes an entry's turn of the device; done: it is the one.
func (w *rewind) entry(it *dunlin.FeedItem) (done bool, err error) {
	key := dunlin.DeviceKey{Tenant: w.alert.Tenant, Device: w.alert.Device}
	for i := range it.Entry.Changes {
		ch := &it.Entry.Changes[i]
		if ch.DeviceKey != key || len(ch.Inputs) == 0 {
			continue
		}
		first := ch.Seq(0)
		switch {
		case first > w.alert.RaisedSeq:
			return false, fmt.Errorf("%w: its entry was dropped by retention: the oldest input of the device that is kept has number %d of %s", dunlin.ErrCursorLost,
				first, it.Entry.At)
		case ch.Version < w.alert.RaisedSeq && ch.Domain != w.alert.Domain:
			w.twin = nil // it lived in another domain
			continue
		}
		if w.twin == nil {
			w.twin = newTwin(ch)
			w.out.Rebuilt, w.out.Whole = it.Entry.At, first == 1
			w.logged = make([]bool, len(w.repeat.pipeline))
		}
		return ch.Version >= w.alert.RaisedSeq, w.turn(it, ch)
	}
	return false, nil
}

// turn runs a turn again; of the one that counts it notes everything.
func (w *rewind) turn(it *dunlin.FeedItem, ch *dunlin.Change) error {
	r := w.repeat
	r.begin(w.twin, ch)
	target := ch.Version >= w.alert.RaisedSeq
	states := make(map[uint8][]byte)
	if target {
		for i := range ch.Stages {
			states[ch.Stages[i].Stage] = slices.Clone(w.twin.m.PluginState(ch.Stages[i].Stage))
		}
	}
	if err := r.run(it.Entry.At); err != nil {
		return err
	}
	w.out.Turns++
	a := &r.turns[0]
	if target {
		w.tell(it, a, states)
	}
	// What the log has of a state is the truth, and goes on.
	for i := range ch.Stages {
		was := &ch.Stages[i]
		if !was.StateSet || i >= len(a.now.Stages) {
			continue
		}
		a.now.Stages[i].State, a.now.Stages[i].StateSet = was.State, true
		if int(was.Stage) < len(w.logged) {
			w.logged[was.Stage] = true
		}
	}
	r.end()
	return nil
}

// tell notes the turn that raised the alert.
func (w *rewind) tell(it *dunlin.FeedItem, a *again, before map[uint8][]byte) {
	x := w.out
	x.At, x.Index, x.Seq = it.Entry.At, it.Index, a.was.Seq(0)
	x.Inputs, x.Input = cloneInputs(a.was.Inputs), int(w.alert.RaisedSeq-a.was.Seq(0))
	x.Difference = a.difference()
	x.Same = x.Difference == ""
	x.Fuel, x.Logs = a.fuel, slices.Clone(w.repeat.logs)
	for i := range a.now.Alerts {
		x.Again = append(x.Again, cloneAlert(&a.now.Alerts[i]))
	}
	i := w.stageOf(a)
	if i < 0 {
		return
	}
	st := &a.now.Stages[i]
	x.Stage, x.Hash = int(st.Stage), a.was.Stages[i].Hash
	x.Before, x.After = before[st.Stage], before[st.Stage]
	if st.StateSet {
		x.After = slices.Clone(st.State)
	}
	x.StateFrom = "rebuilt"
	if int(st.Stage) < len(w.logged) && w.logged[st.Stage] {
		x.StateFrom = "log"
	}
	if was := &a.was.Stages[i]; was.StateSet && x.Same && string(was.State) != string(x.After) {
		x.Same, x.Difference = false, "the state after it is another one than the log has"
	}
	if int(st.Stage) < len(w.repeat.pipeline) {
		now := &w.repeat.pipeline[st.Stage]
		x.Name, x.Plugin, x.Config, x.Rules = now.Plugin, now.Name, slices.Clone(compact(now.Config)), slices.Clone(now.Rules)
	}
}

// stageOf finds the stage of a turn that raised the alert: the only one, or the first one that did so now.
func (w *rewind) stageOf(a *again) int {
	if len(a.was.Stages) == 1 {
		return 0
	}
	for _, by := range w.repeat.raised {
		if by.rule == w.alert.Rule && by.key == w.alert.Key {
			return by.stage
		}
	}
	return -1
}

func cloneInputs(in []dunlin.Input) []dunlin.Input {
	e, err := entry.Decode(entry.AppendAs(nil, &dunlin.Entry{Changes: []dunlin.Change{{Inputs: in}}}, entry.Version))
	if err != nil || len(e.Changes) != 1 {
		return nil
	}
	return e.Changes[0].Inputs
}

func cloneAlert(a *dunlin.Alert) dunlin.Alert {
	c := *a
	c.Rule, c.Key, c.Text = strings.Clone(a.Rule), strings.Clone(a.Key), strings.Clone(a.Text)
	if a.Value != nil {
		c.Value = new(*a.Value)
	}
	return c
}

// alertEntry is an entry that carries an alert from node to node.
func alertEntry(sh dunlin.ShardID, a *dunlin.Alert) *dunlin.Entry {
	return &dunlin.Entry{Shard: sh, At: a.At, Changes: []dunlin.Change{{DeviceKey: dunlin.DeviceKey{Tenant: a.Tenant, Device: a.Device}, Domain: a.Domain,
		Alerts: []dunlin.Alert{*a}}}}
}

// serveExplain answers another node's question about an alert.
func (s *Service) serveExplain(ctx context.Context, body []byte) ([]byte, error) {
	if len(body) == 0 || body[0] != callVersion {
		return nil, fmt.Errorf("%w: %s of another version", dunlin.ErrInvalid, methodExplain)
	}
	e, err := entry.Decode(body[1:])
	if err != nil {
		return nil, err
	}
	if len(e.Changes) != 1 || len(e.Changes[0].Alerts) != 1 || int(e.Shard) >= s.cfg.Shards {
		return nil, fmt.Errorf("%w: %s without its alert", dunlin.ErrInvalid, methodExplain)
	}
	x, err := s.explainHere(ctx, e.Shard, &e.Changes[0].Alerts[0])
	if err != nil {
		return nil, err
	}
	return appendExplanation(x)
}

// appendExplanation encodes an explanation: JSON behind its length, then an entry with the alert, what it was made of, and what
// the turn made now: numbers that JSON has no words for come through.
func appendExplanation(x *dunlin.Explanation) ([]byte, error) {
	j, err := json.Marshal(x)
	if err != nil {
		return nil, err
	}
	b := binary.AppendUvarint([]byte{callVersion}, uint64(len(j)))
	b = append(b, j...)
	return entry.AppendAs(b, &dunlin.Entry{Shard: x.Shard, Changes: []dunlin.Change{{Alerts: []dunlin.Alert{x.Alert}}, {Inputs: x.Inputs, Alerts: x.Again}}},
		entry.Version), nil
}

func cutExplanation(b []byte) (*dunlin.Explanation, error) {
	bad := fmt.Errorf("%w: an explanation", dunlin.ErrInvalid)
	if len(b) == 0 || b[0] != callVersion {
		return nil, bad
	}
	n, w := binary.Uvarint(b[1:])
	if w <= 0 || n > uint64(len(b)-1-w) {
		return nil, bad
	}
	b = b[1+w:]
	x := &dunlin.Explanation{}
	if err := json.Unmarshal(b[:n], x); err != nil {
		return nil, bad
	}
	e, err := entry.Decode(b[n:])
	if err != nil || len(e.Changes) != 2 || len(e.Changes[0].Alerts) != 1 {
		return nil, bad
	}
	x.Alert, x.Inputs, x.Again = e.Changes[0].Alerts[0], e.Changes[1].Inputs, e.Changes[1].Alerts
	return x, nil
}
