package actors

import (
	"log/slog"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/device"
)

// pipelines runs the domains' plugins on the turn: one call for each stage of each domain. It errs only if the plugins'
// host is closing.
func (s *shard) pipelines(t *turn, now dunlin.Time) error {
	for i, r := range t.rules {
		if r == nil || len(r.Stages) == 0 || t.done1(i) {
			continue
		}
		t.who = t.who[:0]
		for j := i; j < len(t.rules); j++ {
			if t.rules[j] == r {
				t.who = append(t.who, j)
			}
		}
		if err := s.pipeline(t, r, now); err != nil {
			return err
		}
	}
	return nil
}

// done1 reports whether the i-th device's pipeline has run, together with that of an earlier device of its domain.
func (t *turn) done1(i int) bool { return len(t.changes[i].Stages) > 0 }

// pipeline runs one domain's stages on its devices, t.who.
func (s *shard) pipeline(t *turn, r *device.Rules, now dunlin.Time) error {
	for stage := range r.Stages {
		st := &r.Stages[stage]
		t.calls = t.calls[:0]
		for _, i := range t.who {
			w := &t.works[i]
			w.State = t.cells[i].PluginState(uint8(stage))
			w.Inputs = t.view(&t.changes[i])
			w.Outcome = dunlin.Outcome{}
			t.calls = append(t.calls, w)
		}
		if err := s.dir.deps.Processor.Process(r.Domain, st, stage, now, t.calls); err != nil {
			return err
		}
		for n, i := range t.who {
			w := t.calls[n]
			t.cells[i].Stage(&t.changes[i], uint8(stage), st.Hash, &w.Outcome, now)
			if len(w.Outcome.Logs) > 0 {
				s.logs(w, st, now)
			}
		}
	}
	clear(t.calls)
	return nil
}

// view returns the change's inputs as the next stage sees them: with the readings derived so far as records of the last
// input. A raw input that has been decoded that way is telemetry to later stages. The change's own inputs stay as they are.
func (t *turn) view(c *dunlin.Change) []dunlin.Input {
	derived := 0
	for i := range c.Stages {
		derived += len(c.Stages[i].Records)
	}
	if derived == 0 {
		return c.Inputs
	}
	from := len(t.views)
	t.views = append(t.views, c.Inputs...)
	view := t.views[from:len(t.views):len(t.views)]
	last := &view[len(view)-1]
	records := make([]dunlin.Record, 0, len(last.Records)+derived)
	records = append(records, last.Records...)
	for i := range c.Stages {
		records = append(records, c.Stages[i].Records...)
	}
	if last.Records = records; last.Kind == dunlin.InputRaw {
		last.Kind, last.Payload = dunlin.InputTelemetry, nil
	}
	return view
}

func (s *shard) logs(w *dunlin.Work, st *dunlin.Stage, now dunlin.Time) {
	for _, line := range w.Outcome.Logs {
		if !s.dir.logs.allow(now) {
			s.dir.met.logsDropped.Inc()
			continue
		}
		s.dir.cfg.Log.Info("plugin", slog.String("plugin", st.Plugin), slog.String("device", w.DeviceKey.String()),
			slog.String("says", line))
	}
}
