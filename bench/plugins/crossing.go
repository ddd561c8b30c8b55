package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins"
)

// round has all works' readings worked off once; the readings differ from round to round.
type round func(works []*dunlin.Work) error

// contender is what can do the threshold's work.
type contender struct {
	name string
	goals
	missing string // why it isn't here
	run     round
	close   func()
}

// crossings compares them: what a reading costs alone and in a batch of 100 devices, alerts and states included. The runs are
// short and take turns: whatever disturbs the machine for a while disturbs a few runs of all, not all runs of one.
func crossings(ctx context.Context, o options) error {
	runs := o.runs * crossingTurns
	each := o.bench / crossingTurns
	fmt.Printf("Crossing: the threshold example, one reading a device, alerts and states in and out (medians of %d runs of %v, CPU time of this process)\n", runs, each)
	fmt.Printf("  %-26s %14s %14s %12s %14s\n", "", "single, ns", "single ev/s", "of 100, ns", "of 100, ev/s")
	cs, err := contenders(o)
	if err != nil {
		return err
	}
	var ls []*line
	for i := range cs {
		l := &line{contender: &cs[i], single: newCourse(&cs[i], 1), batch: newCourse(&cs[i], 100)}
		ls = append(ls, l)
		defer l.end()
	}
	for turn := range runs + 1 { // the first warms up
		for _, l := range ls {
			if err := errors.Join(l.single.measure(ctx, each, turn > 0), l.batch.measure(ctx, each, turn > 0)); err != nil {
				return fmt.Errorf("%s: %w", l.name, err)
			}
		}
	}
	for _, l := range ls {
		l.print()
	}
	return nil
}

// crossingTurns is how many pieces a run of a crossing is cut into.
const crossingTurns = 10

// line is what is said of a contender.
type line struct {
	*contender
	single, batch *course
}

func (l *line) end() {
	if l.close != nil {
		l.close()
	}
}

func (l *line) print() {
	if l.missing != "" {
		fmt.Printf("  %-26s %s\n", l.name, l.missing)
		return
	}
	single, batch := medianOf(l.single.costs), medianOf(l.batch.costs)
	says := ""
	if l.goals.single > 0 {
		says = verdict(single/1e3 <= l.goals.single && 1e3/batch >= l.goals.batch, fmt.Sprintf("≤ %v µs, ≥ %v M ev/s", l.goals.single, l.goals.batch))
	}
	fmt.Printf("  %-26s %14.0f %14.0f %12.0f %14.0f  %s\n", l.name, single, 1e9/single, batch, 1e9/batch, says)
}

// course is a contender's way through the temperatures, with so many devices at once.
type course struct {
	c     *contender
	works []*dunlin.Work
	n     int
	now   dunlin.Time
	costs []float64 // nanoseconds of processor time for a reading, of each run
}

func newCourse(c *contender, devices int) *course {
	return &course{c: c, works: reports(devices), now: epoch}
}

// step has one reading of each device worked off.
func (s *course) step() error {
	s.now += 1000
	for _, w := range s.works {
		w.Inputs[0].Received, w.Inputs[0].Records[0].Time, w.Inputs[0].Records[0].Num = s.now, s.now, temperature(s.n)
		s.n++
	}
	s.n++ // each device gets all temperatures
	if err := s.c.run(s.works); err != nil {
		return err
	}
	for _, w := range s.works {
		if w.Outcome.Failure != "" {
			return errors.New(w.Outcome.Failure)
		}
		if w.Outcome.State != nil {
			w.State = w.Outcome.State
		}
	}
	return nil
}

// measure runs it for a while.
func (s *course) measure(ctx context.Context, most time.Duration, counts bool) error {
	if s.c.missing != "" {
		return nil
	}
	for range 20 { // the caches are somebody else's
		if err := s.step(); err != nil {
			return err
		}
	}
	began, cpu, count := time.Now(), cpuTime(), 0
	for time.Since(began) < most {
		for range 20 {
			if err := s.step(); err != nil {
				return err
			}
		}
		count += 20 * len(s.works)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	if counts {
		s.costs = append(s.costs, float64(cpuTime()-cpu)/float64(count))
	}
	return nil
}

func contenders(o options) (cs []contender, err error) {
	for _, l := range languages() {
		wasm, ok, err := l.module(o)
		if err != nil {
			return nil, err
		}
		if !ok {
			cs = append(cs, contender{name: l.name + " plugin", missing: l.notBuilt()})
			continue
		}
		h, err := openHost(filepath.Join(o.work, "cache"), plugins.Limits{})
		if err != nil {
			return nil, err
		}
		st := h.stage("threshold", wasm, `{}`)
		cs = append(cs, contender{name: l.name + " plugin", goals: l.goals, close: func() { _ = h.Close() }, run: func(works []*dunlin.Work) error {
			return h.Process("cold", st, 0, works[0].Inputs[0].Received, works)
		}})
	}
	h, err := openHost(filepath.Join(o.work, "cache"), plugins.Limits{})
	if err != nil {
		return nil, err
	}
	rules := rulesStage(`[{"name":"threshold","when":"temp > 8","clear":"temp < 7","severity":"major"}]`)
	cs = append(cs, contender{name: "rules (CEL)", close: func() { _ = h.Close() }, run: func(works []*dunlin.Work) error {
		return h.Process("cold", rules, 0, works[0].Inputs[0].Received, works)
	}}, contender{name: "native Go", close: func() {}, run: native})
	js, err := javaScript()
	if err != nil {
		return nil, err
	}
	lua, closeLua, err := luaScript()
	if err != nil {
		return nil, err
	}
	return append(cs, contender{name: "JavaScript (goja)", close: func() {}, run: js},
		contender{name: "Lua (gopher-lua)", close: closeLua, run: lua}), nil
}
