package main

import (
	"context"
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

// crossings compares them: what a reading costs alone and in a batch of 100 devices, alerts and states included.
func crossings(ctx context.Context, o options) error {
	fmt.Printf("Crossing: the threshold example, one reading a device, alerts and states in and out (medians of %d runs of %v, CPU time of this process)\n", o.runs, o.bench)
	fmt.Printf("  %-26s %14s %14s %12s %14s\n", "", "single, ns", "single ev/s", "of 100, ns", "of 100, ev/s")
	cs, err := contenders(o)
	if err != nil {
		return err
	}
	for _, c := range cs {
		if c.missing != "" {
			fmt.Printf("  %-26s %s\n", c.name, c.missing)
			continue
		}
		single, err := cost(ctx, o, &c, 1)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		batch, err := cost(ctx, o, &c, 100)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		c.close()
		says := ""
		if c.single > 0 {
			says = verdict(single/1e3 <= c.single && 1e3/batch >= c.batch, fmt.Sprintf("≤ %v µs, ≥ %v M ev/s", c.single, c.batch))
		}
		fmt.Printf("  %-26s %14.0f %14.0f %12.0f %14.0f  %s\n", c.name, single, 1e9/single, batch, 1e9/batch, says)
	}
	return nil
}

// cost is nanoseconds of processor time for a reading.
func cost(ctx context.Context, o options, c *contender, devices int) (float64, error) {
	works := reports(devices)
	n := 0
	now := epoch
	step := func() error {
		now += 1000
		for _, w := range works {
			w.Inputs[0].Received, w.Inputs[0].Records[0].Time, w.Inputs[0].Records[0].Num = now, now, temperature(n)
			n++
		}
		n++ // each device gets all temperatures
		if err := c.run(works); err != nil {
			return err
		}
		for _, w := range works {
			if w.Outcome.Failure != "" {
				return fmt.Errorf("%s", w.Outcome.Failure)
			}
			if w.Outcome.State != nil {
				w.State = w.Outcome.State
			}
		}
		return nil
	}
	for range 200 { // compiles, warms up
		if err := step(); err != nil {
			return 0, err
		}
	}
	return median(o, func() (float64, error) {
		began, cpu, count := time.Now(), cpuTime(), 0
		for time.Since(began) < o.bench {
			for range 20 {
				if err := step(); err != nil {
					return 0, err
				}
			}
			count += 20 * devices
			if ctx.Err() != nil {
				return 0, context.Cause(ctx)
			}
		}
		return float64(cpuTime()-cpu) / float64(count), nil
	})
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
