package replay

import (
	"cmp"
	"context"
	"errors"
	"io"
	"math"
	"runtime"
	"slices"
	"sync/atomic"

	"github.com/dunlin-iot/dunlin"
)

// task is a back-test with all that was looked up for it: what a shard's run has to know.
type task struct {
	tenant    dunlin.Tenant
	domain    dunlin.DomainID
	device    dunlin.DeviceID // "": all
	exact     bool
	byTurn    bool
	index     int            // of the stage
	pipeline  []dunlin.Stage // as it is deployed
	candidate dunlin.Stage
	brought   bool        // the candidate's module came with the question
	begin     dunlin.Time // of the warm-up
	period    period
	listMax   int // devices that are listed
}

// alone reports whether the stage is the pipeline's only one.
func (t *task) alone() bool { return len(t.pipeline) == 1 }

// rerun reports whether the candidate is compared with the deployed version at work again, not with the recording, which does
// not tell whose alert it is.
func (t *task) rerun() bool { return !t.exact && !t.alone() }

// shardRun is a back-test of one shard.
type shardRun struct {
	*task
	cfg  *Config
	p    Processor
	out  *gauge
	mine float64 // of the gauge's done

	devs  map[dunlin.DeviceKey]*dev
	cand  *sim
	base  *sim // nil: the recording is what is compared with
	again *repeat
	tally tally
	held  int // inputs in the window
	now   dunlin.Time
}

// dev is a device of the shard.
type dev struct {
	key        dunlin.DeviceKey
	cand, base *cell
	twin       *twin // of an exact run
	diff       *diff // nil: no alerts so far
	counted    bool
}

// gauge is how far a back-test is, for others to read while it goes on.
type gauge struct {
	done     atomic.Uint64 // bits of a float64
	inputs   atomic.Uint64
	readings atomic.Uint64
	alerts   atomic.Uint64
	failed   atomic.Uint64
}

func (g *gauge) add(d float64) {
	for {
		was := g.done.Load()
		if g.done.CompareAndSwap(was, math.Float64bits(math.Float64frombits(was)+d)) {
			return
		}
	}
}

func newShardRun(t *task, cfg *Config, p Processor, out *gauge) *shardRun {
	r := &shardRun{task: t, cfg: cfg, p: p, out: out, devs: make(map[dunlin.DeviceKey]*dev)}
	if t.exact {
		r.again = newRepeat(t, p, cfg.Clock, &r.tally.costs)
		return r
	}
	r.cand = r.newSim(t.candidate, &r.tally.costs, candidate)
	if t.rerun() {
		r.base = r.newSim(t.pipeline[t.index], &costs{}, recorded)
	}
	return r
}

func (r *shardRun) newSim(st dunlin.Stage, k *costs, side int) *sim {
	return &sim{p: r.p, clock: r.cfg.Clock, domain: r.domain, stage: st, index: uint8(r.index), alone: r.alone(), byTurn: r.byTurn,
		fuel: r.cfg.FuelPerCall, room: roomMin, cost: k, emit: func(c *cell, a *dunlin.Alert) { c.dev.alert(side, a) }}
}

func (d *dev) alert(side int, a *dunlin.Alert) {
	if d.diff == nil {
		d.diff = &diff{}
	}
	d.diff.add(side, a)
}

// slack is how much later than an entry another one may be made that says an earlier time: owners' clocks differ.
const slack = dunlin.Time(60_000_000)

// run works the shard's recording off.
func (r *shardRun) run(ctx context.Context, rd Reader) error {
	defer func() { r.progress(1) }()
	var items []dunlin.FeedItem
	for {
		var err error
		items, err = rd.Next(items)
		end := errors.Is(err, io.EOF)
		if err != nil && !end {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		for i := range items {
			if e := items[i].Entry; e.At >= r.period.until+slack {
				end = true
			} else if e.At < r.period.until {
				if err := r.entry(e); err != nil {
					return err
				}
			}
		}
		if r.held >= r.cfg.WindowMax || r.again != nil || end {
			if err := r.drain(r.now); err != nil {
				return err
			}
			rd.Reset()
			runtime.Gosched() // devices first
			r.progress(float64(r.now-r.begin) / float64(r.period.until-r.begin))
		}
		items = items[:0] // they are fed; what they point to stays until Reset
		if end {
			if at, whole := rd.Begins(); whole {
				r.tally.born = at
			} else {
				r.tally.reaches = at
			}
			return r.finish()
		}
	}
}

// entry takes over what an entry has of the domain.
func (r *shardRun) entry(e *dunlin.Entry) error {
	r.now = max(r.now, e.At)
	if r.again != nil {
		return r.repeat(e)
	}
	for i := range e.Changes {
		if ch := &e.Changes[i]; r.concerns(ch) {
			r.change(e, ch)
		}
	}
	for i := range e.Puts {
		if err := r.put(&e.Puts[i]); err != nil {
			return err
		}
	}
	return nil
}

func (r *shardRun) concerns(ch *dunlin.Change) bool {
	return ch.Domain == r.domain && ch.Tenant == r.tenant && len(ch.Inputs) > 0 && (r.device == "" || ch.Device == r.device)
}

// change feeds a turn to the sims.
func (r *shardRun) change(e *dunlin.Entry, ch *dunlin.Change) {
	d := r.devs[ch.DeviceKey]
	if d == nil {
		d = r.add(ch)
	}
	r.count(d, e, ch)
	r.cand.feed(d.cand, e.At, ch)
	if r.base != nil {
		r.base.feed(d.base, e.At, ch)
	} else {
		for i := range ch.Alerts {
			d.alert(recorded, &ch.Alerts[i])
		}
	}
	r.held += len(ch.Inputs)
}

func (r *shardRun) add(ch *dunlin.Change) *dev {
	key := dunlin.DeviceKey{Tenant: r.tenant, Device: ch.Device}
	d := &dev{key: key}
	before := ch.Version - uint64(len(ch.Inputs))
	if r.cand != nil {
		d.cand = r.cand.cell(d, r.domain, before)
	}
	if r.base != nil {
		d.base = r.base.cell(d, r.domain, before)
	}
	r.devs[key] = d
	return d
}

// count counts a recorded turn of the period.
func (r *shardRun) count(d *dev, e *dunlin.Entry, ch *dunlin.Change) {
	for i := range ch.Stages {
		if st := &ch.Stages[i]; int(st.Stage) == r.index {
			r.tally.runs(st.Hash)
		}
	}
	if e.At < r.period.since {
		return
	}
	if !d.counted {
		d.counted = true
		r.tally.devicesSeen++
	}
	r.tally.turns++
	for i := range ch.Inputs {
		if in := &ch.Inputs[i]; in.Kind != dunlin.InputTimer {
			r.tally.inputs++
			r.tally.readings += uint64(len(in.Records))
		}
	}
}

// put notices that a device was removed.
func (r *shardRun) put(p *dunlin.Put) error {
	if p.Table != dunlin.TableDevices || p.Value != nil {
		return nil
	}
	tenant, id, _ := cutKey(p.Key)
	d := r.devs[dunlin.DeviceKey{Tenant: tenant, Device: id}]
	if d == nil {
		return nil
	}
	if err := r.drain(r.now); err != nil {
		return err
	}
	r.end(d)
	delete(r.devs, d.key)
	for _, c := range []*cell{d.cand, d.base} {
		if c != nil {
			c.gone = true
		}
	}
	if r.cand != nil {
		r.cand.drop()
	}
	if r.base != nil {
		r.base.drop()
	}
	return nil
}

func cutKey(key string) (dunlin.Tenant, dunlin.DeviceID, bool) {
	for i := range len(key) {
		if key[i] == '/' {
			return dunlin.Tenant(key[:i]), dunlin.DeviceID(key[i+1:]), true
		}
	}
	return "", "", false
}

// drain works the window off and settles what is certain then.
func (r *shardRun) drain(to dunlin.Time) error {
	for _, s := range []*sim{r.cand, r.base} {
		if s != nil {
			if err := s.drain(to); err != nil {
				return err
			}
		}
	}
	r.held = 0
	for _, d := range r.devs {
		if d.diff != nil && len(d.diff.conditions) > 0 {
			d.diff.settle(&r.period, to, false, d.key)
		}
	}
	return nil
}

// finish lets the timers fire that are due until the end, and ends all comparisons.
func (r *shardRun) finish() error {
	if err := r.drain(r.period.until - 1); err != nil {
		return err
	}
	for _, d := range r.devs {
		r.end(d)
	}
	return nil
}

// end ends a device's comparison.
func (r *shardRun) end(d *dev) {
	if d.diff == nil {
		return
	}
	d.diff.settle(&r.period, 0, true, d.key)
	addAlerts(&r.tally.alerts, d.diff.counts)
	if differ(&d.diff.counts) > 0 {
		r.tally.list(dunlin.BacktestDevice{Device: d.key.Device, Alerts: d.diff.counts, Differences: d.diff.list}, r.listMax)
	}
	d.diff = nil
}

// progress says that so much of the shard is done.
func (r *shardRun) progress(done float64) {
	done = min(max(done, r.mine), 1)
	r.out.add(done - r.mine)
	r.mine = done
	k := &r.tally
	r.out.inputs.Add(k.inputs - k.told.inputs)
	r.out.readings.Add(k.readings - k.told.readings)
	r.out.alerts.Add(k.costs.alerts - k.told.alerts)
	r.out.failed.Add(k.costs.Failed - k.told.failed)
	k.told.inputs, k.told.readings, k.told.alerts, k.told.failed = k.inputs, k.readings, k.costs.alerts, k.costs.Failed
}

// tally is what came of some shards.
type tally struct {
	alerts      dunlin.BacktestAlerts
	devices     []dunlin.BacktestDevice
	devicesSeen int
	turns       uint64
	inputs      uint64
	readings    uint64
	costs       costs
	deployed    []dunlin.ModuleHash
	reaches     dunlin.Time // the oldest entry of the shard that has lost older ones and keeps least; 0: none has
	born        dunlin.Time // the first entry of those that have lost nothing; 0: there are none
	exact       *dunlin.BacktestExactness

	told struct{ inputs, readings, alerts, failed uint64 }
}

const deployedMax = 8

// runs notes a module that was at work.
func (k *tally) runs(h dunlin.ModuleHash) {
	if n := len(k.deployed); n > 0 && k.deployed[n-1] == h {
		return
	}
	if !slices.Contains(k.deployed, h) && len(k.deployed) < deployedMax {
		k.deployed = append(k.deployed, h)
	}
}

// list adds a device to those that are listed: those with the most differences.
func (k *tally) list(d dunlin.BacktestDevice, most int) {
	if k.devices = append(k.devices, d); len(k.devices) >= 2*most {
		k.shorten(most)
	}
}

func (k *tally) shorten(most int) {
	slices.SortFunc(k.devices, func(a, b dunlin.BacktestDevice) int {
		return cmp.Or(cmp.Compare(differ(&b.Alerts), differ(&a.Alerts)), cmp.Compare(a.Device, b.Device))
	})
	clear(k.devices[min(len(k.devices), most):])
	k.devices = k.devices[:min(len(k.devices), most)]
}

// merge adds other shards' tally.
func (k *tally) merge(o *tally, most int) {
	addAlerts(&k.alerts, o.alerts)
	k.devices = append(k.devices, o.devices...)
	k.shorten(most)
	k.devicesSeen += o.devicesSeen
	k.turns += o.turns
	k.inputs += o.inputs
	k.readings += o.readings
	k.costs.merge(&o.costs)
	for _, h := range o.deployed {
		k.runs(h)
	}
	k.reaches = max(k.reaches, o.reaches)
	if o.born != 0 && (k.born == 0 || o.born < k.born) {
		k.born = o.born
	}
	if o.exact == nil {
		return
	}
	if k.exact == nil {
		k.exact = &dunlin.BacktestExactness{}
	}
	k.exact.Turns += o.exact.Turns
	k.exact.Different += o.exact.Different
	k.exact.Differences = append(k.exact.Differences, o.exact.Differences...)
	k.exact.Differences = k.exact.Differences[:min(len(k.exact.Differences), differencesMax)]
}
