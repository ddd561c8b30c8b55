package plugins

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// run is one call of Process, with the memory that it works with; it is kept from call to call.
type run struct {
	*route
	h      *Host
	w      *worker
	turn   turn
	now    dunlin.Time
	traps  int
	rest   []*dunlin.Work                     // those not in quarantine
	allow  func([]byte, dunlin.Time) []string // the method lines: made once, not for each crossing
	paused func(time.Duration)                // the method pause, likewise
}

func newRun(h *Host) *run {
	r := &run{h: h, w: newWorker(&h.cfg.Limits)}
	r.allow, r.paused = r.lines, r.pause
	return r
}

// done gives it back.
func (r *run) done() {
	clear(r.rest)
	r.route, r.turn.flow = nil, nil
	r.h.runs.Put(r)
}

func (r *run) pause(used time.Duration) { r.h.gate.pause(&r.turn, used) }

// batch works off all works, in as many crossings as they need. It errs only if the host is closing.
func (r *run) batch(works []*dunlin.Work) error {
	r.w.serve(r.st, r.pool.module.manifest)
	works = r.withoutQuarantined(works)
	for len(works) > 0 {
		n := r.affordable(works[:r.w.take(works, &r.h.cfg.Limits)])
		if n == 0 {
			r.fail(works[0], failure(fmt.Sprintf("input too large: the device's inputs and state have more than %d bytes",
				r.h.cfg.Limits.InputBytes)))
			works = works[1:]
			continue
		}
		part := works[:n]
		works = works[n:]
		if reason := r.cross(part); reason == nil {
			continue
		} else if errors.Is(reason, errClosed) {
			return reason
		} else if n == 1 {
			r.fail(part[0], reason)
			continue
		}
		// One of them is the poison: alone, each shows what it does, and the others get their results.
		for i := range part {
			if r.traps > r.h.cfg.Limits.TrapsPerBatch {
				r.fail(part[i], notRun{text: fmt.Sprintf("not tried: the plugin had failed on %d devices of the batch", r.traps-1)})
				continue
			}
			if reason := r.cross(part[i : i+1]); errors.Is(reason, errClosed) {
				return reason
			} else if reason != nil {
				r.fail(part[i], reason)
			}
		}
	}
	r.log()
	return nil
}

// rules runs a stage of rules, when it is the domain's turn: they can't trap, and are bounded by themselves.
func (r *run) rules(works []*dunlin.Work) error {
	r.turn.charged, r.turn.long = 0, false
	if err := r.h.gate.enter(&r.turn); err != nil {
		return err
	}
	began := r.h.clock()
	r.h.rules.process(r.st, works)
	r.h.gate.leave(&r.turn, r.h.clock()-began, len(works))
	return nil
}

// affordable returns how many of the works are expected to take no more than half of what a call may: the first in any case.
func (r *run) affordable(works []*dunlin.Work) int {
	most := r.pool.cost.inputs(r.h.cfg.Limits.CallTime / 2)
	inputs := 0
	for i, work := range works {
		if inputs += len(work.Inputs); i > 0 && inputs > most {
			return i
		}
	}
	return len(works)
}

// cross makes one crossing with works when it is the domain's turn, and fills in their outcomes; the error is why it came to
// nothing.
func (r *run) cross(works []*dunlin.Work) error {
	r.turn.charged, r.turn.long = 0, false
	if err := r.h.gate.enter(&r.turn); err != nil {
		return err
	}
	used, inputs, err := r.crossing(works)
	r.h.gate.leave(&r.turn, used, inputs)
	return err
}

func (r *run) crossing(works []*dunlin.Work) (used time.Duration, inputs int, err error) {
	in, used, err := r.pool.take(r.now)
	if errors.Is(err, errGone) {
		if in, used, err = r.again(); err == nil {
			r.w.serve(r.st, r.pool.module.manifest)
		}
	}
	if err != nil {
		return used, 0, err
	}
	p := r.pool
	inputs = r.w.encode(in, r.now, works)
	in.meter.pause = r.paused
	out, burnt, took, err := in.call(r.w.frame, r.now, p.cost.sample() || inputs >= sampled)
	in.meter.pause = yield
	if err == nil {
		err = r.w.decode(out, works, r.now, r.allow)
	}
	used += p.cost.note(burnt, took, inputs) + time.Duration(len(r.w.frame)+len(out))/2 // which the host works off
	m := &p.metrics
	m.crossings.Inc()
	m.fuel.Add(float64(burnt))
	p.second(used)
	m.output.Add(float64(len(out)))
	if len(in.printed) > 0 {
		r.print(in.printed)
	}
	r.verdict.inputs.Add(int64(inputs))
	if err != nil {
		r.traps++
		m.traps.Inc()
		if in.meter.over {
			m.stopped.Inc()
		}
		if _, stated := errors.AsType[pluginError](err); stated {
			p.give(in)
		} else {
			p.discard(in)
		}
		return used, inputs, err
	}
	p.give(in)
	m.inputs.Add(float64(inputs))
	share := uint64(burnt) / uint64(len(works))
	for _, work := range works {
		work.Outcome.FuelUsed = share
		if why := work.Outcome.Failure; why != "" {
			r.strike(work, !strings.HasPrefix(why, pluginErrorPrefix))
		} else {
			p.strikes.forgive(work.DeviceKey)
		}
	}
	return used, inputs, nil
}

// second counts processor time; little pieces are saved up, since adding fractions to a counter is dear.
func (p *pool) second(used time.Duration) {
	if p.seconds.Add(int64(used)) > int64(100*time.Microsecond) {
		p.metrics.seconds.Add(float64(p.seconds.Swap(0)) / 1e9)
	}
}

// again takes an instance of a new pool.
func (r *run) again() (*instance, time.Duration, error) {
	p, err := r.h.pool(r.st, r.now)
	if err == nil {
		way := *r.route // which others may share
		way.pool, way.verdict = p, p.module.verdict(r.tenant)
		r.route = &way
		in, used, err := p.take(r.now)
		if !errors.Is(err, errGone) {
			return in, used, err
		}
	}
	if errors.Is(err, errClosed) {
		return nil, 0, err
	}
	return nil, 0, notRun{text: err.Error()}
}

// fail gives a device that was tried alone its reason.
func (r *run) fail(work *dunlin.Work, reason error) {
	work.Outcome = dunlin.Outcome{Failure: reason.Error()}
	r.pool.metrics.inputs.Add(float64(len(work.Inputs)))
	if n, innocent := errors.AsType[notRun](reason); innocent {
		r.pool.metrics.failures.Inc()
		if n.version {
			r.verdict.inputs.Add(int64(len(work.Inputs)))
			r.judge(work)
		}
		return
	}
	_, stated := errors.AsType[pluginError](reason)
	r.strike(work, !stated)
}

// notRun is a failure that is not the device's: the plugin was not run on it.
type notRun struct {
	text    string
	version bool // it is the version's: it traps before it is given anything
}

func (n notRun) Error() string { return n.text }

// strike notes that the plugin failed on a device, and if that is the version's fault.
func (r *run) strike(work *dunlin.Work, version bool) {
	m := &r.pool.metrics
	m.failures.Inc()
	until := r.pool.strikes.strike(work.DeviceKey, r.now)
	if until > 0 {
		m.quarantined.Inc()
	}
	if lines := r.lines([]byte(work.Outcome.Failure), r.now); len(lines) > 0 {
		r.h.cfg.Log.Warn("a plugin failed on a device", slog.String("domain", string(r.domain)),
			slog.String("plugin", r.st.Plugin), slog.String("device", string(work.Device)),
			slog.String("reason", lines[0]), slog.Bool("quarantined", until > 0))
	}
	if version {
		r.judge(work)
	}
}

// judge looks whether the version is bad, and reports it once if so.
func (r *run) judge(work *dunlin.Work) {
	reason := r.verdict.fail(work.DeviceKey, len(work.Inputs), r.now, r.h.cfg.Limits.BadDevices)
	if reason == "" {
		return
	}
	r.pool.metrics.bad.Inc()
	reason += "; the last: " + work.Outcome.Failure
	name, hash, tenant := pluginName(r.st), r.st.Hash, r.tenant
	r.h.cfg.Log.Error("a plugin's version is bad", slog.String("plugin", name), slog.String("module", hash.String()),
		slog.String("domain", string(r.domain)), slog.String("reason", reason))
	if r.h.cfg.OnBad != nil {
		r.h.done.Go(func() { r.h.cfg.OnBad(r.h.ctx, tenant, name, hash, reason) })
	}
}

// pluginName is the name under which a stage's plugin is registered.
func pluginName(st *dunlin.Stage) string {
	if st.Name != "" {
		return st.Name
	}
	return st.Plugin
}

// refuse gives all works a reason without a call.
func (r *run) refuse(works []*dunlin.Work, reason string) {
	for _, work := range works {
		work.Outcome = dunlin.Outcome{Failure: "not tried: this version of the plugin " + reason}
		r.pool.metrics.refused.Add(float64(len(work.Inputs)))
		r.pool.metrics.failures.Inc()
	}
}

// withoutQuarantined leaves out devices that the plugin failed on again and again.
func (r *run) withoutQuarantined(works []*dunlin.Work) []*dunlin.Work {
	if r.pool.strikes.empty() {
		return works
	}
	r.rest = r.rest[:0]
	for _, work := range works {
		if until, strikes := r.pool.strikes.until(work.DeviceKey, r.now); until > 0 {
			work.Outcome = dunlin.Outcome{Failure: fmt.Sprintf("quarantined until %s: the plugin failed %d times in a row",
				until, strikes)}
			r.pool.metrics.refused.Add(float64(len(work.Inputs)))
			r.pool.metrics.failures.Inc()
			continue
		}
		r.rest = append(r.rest, work)
	}
	return r.rest
}

// lines returns those of the text that the domain may still log.
func (r *run) lines(text []byte, now dunlin.Time) []string {
	lines, dropped := r.turn.flow.log.lines(text, now, &r.h.cfg.Limits)
	if dropped > 0 {
		r.pool.metrics.dropped.Add(float64(dropped))
	}
	return lines
}

// print logs what the guest wrote to its standard streams, or with the log import.
func (r *run) print(text []byte) {
	for _, line := range r.lines(text, r.now) {
		r.h.cfg.Log.Info("plugin prints", slog.String("domain", string(r.domain)), slog.String("plugin", r.st.Plugin),
			slog.String("text", line))
	}
}

// log writes the lines that are about no device. Those about devices are the caller's to write, from Outcome.Logs.
func (r *run) log() {
	for _, text := range r.w.lines {
		r.h.cfg.Log.Info("plugin says", slog.String("domain", string(r.domain)), slog.String("plugin", r.st.Plugin),
			slog.String("text", text))
	}
	r.w.lines = r.w.lines[:0]
}

// most inputs of a plugin's first crossing, when nothing is known of what they take.
const firstInputs = 64

// cost is what a pool's crossings take, as far as known: means, the newer the heavier.
type cost struct {
	calls    atomicCount
	perUnit  atomicFloat // nanoseconds
	perInput atomicFloat // nanoseconds; quick to rise, slow to fall
}

// sample reports whether the next crossing is to be measured even if it is short.
func (c *cost) sample() bool { return c.calls.Add(1)%sampled == 1 }

// note learns from a crossing and returns what it took: measured, if took is not 0, or estimated by what it burnt.
func (c *cost) note(burnt int64, took time.Duration, inputs int) time.Duration {
	unit := c.perUnit.Load()
	if took == 0 {
		if unit == 0 {
			unit = nanosUsual
		}
		took = time.Duration(float64(burnt) * unit)
	} else if burnt > 0 {
		now := min(float64(took)/float64(burnt), nanosWorst)
		if unit == 0 {
			unit = now
		}
		c.perUnit.Store(unit + (min(now, 2*unit)-unit)/8) // the odd one was interrupted
	}
	if inputs > 0 {
		mean, now := c.perInput.Load(), float64(took)/float64(inputs)
		switch {
		case mean == 0:
			mean = now
		case now > mean:
			mean += (now - mean) / 2
		default:
			mean += (now - mean) / 32
		}
		c.perInput.Store(mean)
	}
	return took
}

// inputs returns how many inputs are expected to take that long.
func (c *cost) inputs(in time.Duration) int {
	per := c.perInput.Load()
	if per == 0 {
		return firstInputs
	}
	return int(min(max(float64(in)/per, 1), math.MaxInt32))
}
