package plugins

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/dunlin-iot/dunlin"
)

// run is one call of Process.
type run struct {
	h      *Host
	w      *worker
	pool   *pool
	domain dunlin.DomainID
	st     *dunlin.Stage
	now    dunlin.Time
	traps  int
}

// batch works off all works, in as many crossings as they need.
func (r *run) batch(works []*dunlin.Work) {
	r.w.serve(r.st, r.pool.module.manifest)
	works = r.withoutQuarantined(works)
	for len(works) > 0 {
		n := r.w.take(works, &r.h.cfg.Limits)
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
		} else if n == 1 {
			r.fail(part[0], reason)
			continue
		}
		// One of them is the poison: alone, each shows what it does, and the others get their results.
		for i := range part {
			if r.traps > r.h.cfg.Limits.TrapsPerBatch {
				r.fail(part[i], notRun(fmt.Sprintf("not tried: the plugin had failed on %d devices of the batch", r.traps-1)))
				continue
			}
			if reason := r.cross(part[i : i+1]); reason != nil {
				r.fail(part[i], reason)
			}
		}
	}
	r.log()
}

// cross makes one crossing with works and fills in their outcomes; the error is why it came to nothing.
func (r *run) cross(works []*dunlin.Work) error {
	in, err := r.pool.take(r.now)
	if err != nil {
		return err
	}
	r.pool.wantSpare()
	inputs := r.w.encode(in, r.now, works)
	out, burnt, err := in.call(r.w.frame, r.h.cfg.Limits.fuel(inputs), r.now)
	if err == nil {
		err = r.w.decode(out, works, r.now, r.pool.allow)
	}
	m := &r.pool.metrics
	m.crossings.Inc()
	m.fuel.Add(float64(burnt))
	if len(in.printed) > 0 {
		r.w.printed = append(r.w.printed[:0], in.printed...)
		r.print()
	}
	if err != nil {
		r.traps++
		m.traps.Inc()
		if _, stated := errors.AsType[pluginError](err); stated {
			r.pool.give(in)
		} else {
			r.pool.discard(in)
		}
		return err
	}
	r.pool.give(in)
	m.inputs.Add(float64(inputs))
	share := uint64(burnt) / uint64(len(works))
	for _, work := range works {
		work.Outcome.FuelUsed = share
		if work.Outcome.Failure != "" {
			r.strike(work)
		} else {
			r.pool.strikes.forgive(work.DeviceKey)
		}
	}
	return nil
}

// fail gives a device that was tried alone its reason.
func (r *run) fail(work *dunlin.Work, reason error) {
	work.Outcome = dunlin.Outcome{Failure: reason.Error()}
	r.pool.metrics.inputs.Add(float64(len(work.Inputs)))
	if _, innocent := errors.AsType[notRun](reason); innocent {
		r.pool.metrics.failures.Inc()
		return
	}
	r.strike(work)
}

// notRun is a failure that is not the device's: the plugin was not run on it.
type notRun string

func (n notRun) Error() string { return string(n) }

func (r *run) strike(work *dunlin.Work) {
	r.pool.metrics.failures.Inc()
	until := r.pool.strikes.strike(work.DeviceKey, r.now)
	if lines := r.pool.lines([]byte(work.Outcome.Failure), r.now); len(lines) > 0 {
		r.h.cfg.Log.Warn("a plugin failed on a device", slog.String("domain", string(r.domain)),
			slog.String("plugin", r.st.Plugin), slog.String("device", string(work.Device)),
			slog.String("reason", lines[0]), slog.Bool("quarantined", until > 0))
	}
}

// withoutQuarantined leaves out devices that the plugin failed on again and again.
func (r *run) withoutQuarantined(works []*dunlin.Work) []*dunlin.Work {
	if r.pool.strikes.empty() {
		return works
	}
	r.w.works = r.w.works[:0]
	for _, work := range works {
		if until, strikes := r.pool.strikes.until(work.DeviceKey, r.now); until > 0 {
			work.Outcome = dunlin.Outcome{Failure: fmt.Sprintf("quarantined until %s: the plugin failed %d times in a row",
				until, strikes)}
			r.pool.metrics.failures.Inc()
			continue
		}
		r.w.works = append(r.w.works, work)
	}
	return r.w.works
}

// print logs what the guest wrote to its standard streams, or with the log import.
func (r *run) print() {
	for _, line := range r.pool.lines(r.w.printed, r.now) {
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
