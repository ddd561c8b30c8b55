package plugins

import (
	"errors"
	"fmt"
	"log/slog"
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
	played func()                             // the method play, likewise
	job    struct {
		visit
		works []*dunlin.Work
		err   error
	} // of behind
}

func newRun(h *Host) *run {
	r := &run{h: h, w: newWorker(&h.cfg.Limits)}
	r.allow, r.paused, r.played = r.lines, r.pause, r.play
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
	r.w.made, r.w.grants = r.st.Made, r.grants
	if works = r.withoutQuarantined(works); len(works) == 0 {
		r.pool.touch(r.now) // or what is known of those devices would end with it
	}
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
	if len(works) <= 1 {
		return len(works)
	}
	r.pool.mu.Lock()
	most := r.pool.mu.cost.inputs(r.h.cfg.Limits.CallTime / 2)
	r.pool.mu.Unlock()
	inputs := 0
	for i, work := range works {
		if inputs += len(work.Inputs); i > 0 && inputs > most {
			return i
		}
	}
	return len(works)
}

// visit is a crossing's account: what it takes with it when it gets its slot, and what it leaves behind.
type visit struct {
	in    *instance     // nil: none was idle, or it is lost
	last  bool          // it was the pool's last idle one
	timed bool          // it is to be measured even if it is short
	used  time.Duration // beside the guest's: to start the instance, to work off the frames

	ran    bool
	inputs int
	output int
	burnt  int64
	took   time.Duration // the guest's; 0: not measured
}

// cross makes one crossing with works when it is the domain's turn, and fills in their outcomes; the error is why it came to
// nothing.
func (r *run) cross(works []*dunlin.Work) error {
	var v visit
	if err := r.enter(&v); err != nil {
		return err
	}
	var err error
	if r.turn.dear {
		v, err = r.behind(v, works)
	} else {
		err = r.crossing(&v, works)
	}
	r.leave(&v, err == nil)
	if err != nil {
		return err
	}
	share := uint64(v.burnt)
	if len(works) > 1 { // a division takes as long as all else here
		share /= uint64(len(works))
	}
	for _, work := range works {
		work.Outcome.FuelUsed = share
		if why := work.Outcome.Failure; why != "" {
			r.strike(work, !strings.HasPrefix(why, pluginErrorPrefix))
		} else {
			r.pool.strikes.forgive(work.DeviceKey)
		}
	}
	return nil
}

// enter waits for the domain's turn. A slot that is free comes with an idle instance, under one lock.
func (r *run) enter(v *visit) error {
	r.turn.charged, r.turn.long = 0, false
	g, p := r.h.gate, r.pool
	g.mu.Lock()
	granted, err := g.enterLocked(&r.turn)
	if granted && !p.mu.closed {
		p.takeLocked(v, r.now)
	}
	g.mu.Unlock()
	if err == nil && !granted {
		g.wait(&r.turn)
	}
	if v.last {
		p.wantSpare()
	}
	return err
}

// leave ends the turn and gives the instance back: one lock for all that a crossing leaves behind.
func (r *run) leave(v *visit, good bool) {
	g, p := r.h.gate, r.pool
	if v.in != nil {
		p.weigh(v.in)
	}
	g.mu.Lock()
	if v.ran {
		v.used += p.mu.cost.note(v.burnt, v.took, v.inputs)
		t := p.metrics.tally
		t.crossings++
		t.fuel += v.burnt
		t.nanos += int64(v.used)
		t.output += int64(v.output)
		if good {
			t.inputs += int64(v.inputs)
		}
		r.verdict.more += int64(v.inputs)
	}
	kept := v.in == nil || p.giveLocked(v.in)
	g.leaveLocked(&r.turn, v.used, v.inputs)
	g.mu.Unlock()
	if !kept {
		p.discard(v.in)
	}
}

// behind is crossing on a thread that gives way.
func (r *run) behind(v visit, works []*dunlin.Work) (visit, error) {
	r.job.visit, r.job.works = v, works
	r.h.background.do(r.played)
	v, err := r.job.visit, r.job.err
	r.job.visit, r.job.works, r.job.err = visit{}, nil, nil
	return v, err
}

func (r *run) play() { r.job.err = r.crossing(&r.job.visit, r.job.works) }

func (r *run) crossing(v *visit, works []*dunlin.Work) (err error) {
	if v.in == nil {
		if err = r.pool.take(v, r.now); errors.Is(err, errGone) {
			if err = r.again(v); err == nil {
				r.w.serve(r.st, r.pool.module.manifest)
			}
		}
		if err != nil {
			return err
		}
	}
	in := v.in
	v.inputs = r.w.encode(in, r.now, works)
	in.meter.pause = r.paused
	out, burnt, took, err := in.call(r.w.frame, r.now, v.timed || v.inputs >= sampled)
	in.meter.pause = yield
	if err == nil {
		err = r.w.decode(out, works, r.now, r.allow)
	}
	v.ran, v.burnt, v.took, v.output = true, burnt, took, len(out)
	v.used += time.Duration(len(r.w.frame)+len(out)) / 2 // which the host works off
	if len(in.printed) > 0 {
		r.print(in.printed)
	}
	if err != nil {
		r.trapped(v, err)
	}
	return err
}

// trapped notes that a call came to nothing. The instance is lost, unless the plugin said that itself.
func (r *run) trapped(v *visit, err error) {
	r.traps++
	m := &r.pool.metrics
	m.traps.Inc()
	if v.in.meter.over {
		m.stopped.Inc()
	}
	if _, stated := errors.AsType[pluginError](err); !stated {
		r.pool.discard(v.in)
		v.in = nil
	}
}

// again takes an instance of a new pool.
func (r *run) again(v *visit) error {
	p, err := r.h.pool(r.st, r.now)
	if err == nil {
		way := *r.route // which others may share
		way.pool, way.verdict = p, p.module.verdict(r.tenant)
		r.route = &way
		if err = p.take(v, r.now); !errors.Is(err, errGone) {
			return err
		}
	}
	if errors.Is(err, errClosed) {
		return err
	}
	return notRun{text: err.Error()}
}

// fail gives a device that was tried alone its reason.
func (r *run) fail(work *dunlin.Work, reason error) {
	work.Outcome = dunlin.Outcome{Failure: reason.Error()}
	r.h.gate.mu.Lock()
	r.pool.metrics.tally.inputs += int64(len(work.Inputs))
	r.h.gate.mu.Unlock()
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
	r.h.gate.mu.Lock()
	r.verdict.inputs.Add(r.verdict.more)
	r.verdict.more = 0
	r.h.gate.mu.Unlock()
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
	r.pool.touch(r.now)
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
