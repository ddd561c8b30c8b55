package replay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// What nodes ask each other. Bodies are JSON, see docs/formats/calls.md.
const (
	methodStart   = "replay/start"
	methodPoll    = "replay/poll"
	methodStop    = "replay/stop"
	methodExplain = "replay/explain"
	methodDrop    = "replay/drop"
)

// callVersion is the version of questions and answers.
const callVersion = 1

// answerBytesMax bounds an answer: a list of devices that is larger is made shorter.
const answerBytesMax = 4 << 20

// Bounds of starting a back-test elsewhere: with the way of its module, and while the node is busy.
const (
	startMax = 30 * time.Second
	busyMax  = 3 * time.Second
)

// order asks another node to run a back-test on some shards.
type order struct {
	Version  int               `json:"v"`
	Backtest dunlin.Backtest   `json:"backtest"`
	Hash     dunlin.ModuleHash `json:"hash"`            // of the candidate; fetched from the caller if it isn't known
	Fetch    bool              `json:"fetch,omitempty"` // it comes from the caller
	ByTurn   bool              `json:"by_turn,omitempty"`
	Exact    bool              `json:"exact,omitempty"`
	Shards   []dunlin.ShardID  `json:"shards"`
}

// ticket names a back-test that runs for somebody else.
type ticket struct {
	Version int    `json:"v"`
	ID      uint64 `json:"id"`
}

// standing is how it is.
type standing struct {
	Version  int                     `json:"v"`
	Progress dunlin.BacktestProgress `json:"progress"` // Done counts shards
	Ended    bool                    `json:"ended,omitempty"`
	Uneven   bool                    `json:"uneven,omitempty"`
	Error    string                  `json:"error,omitempty"`
	Invalid  bool                    `json:"invalid,omitempty"`
	Tally    *wireTally              `json:"tally,omitempty"`
}

// wireTally is a tally on its way.
type wireTally struct {
	Alerts   dunlin.BacktestAlerts     `json:"alerts"`
	Devices  []dunlin.BacktestDevice   `json:"devices,omitempty"`
	Seen     int                       `json:"seen"`
	Turns    uint64                    `json:"turns"`
	Inputs   uint64                    `json:"inputs"`
	Readings uint64                    `json:"readings"`
	Cost     dunlin.BacktestCost       `json:"cost"`
	Failures []dunlin.BacktestFailure  `json:"failures,omitempty"`
	Deployed []dunlin.ModuleHash       `json:"deployed,omitempty"`
	Reaches  int64                     `json:"reaches"`
	Born     int64                     `json:"born"`
	Exact    *dunlin.BacktestExactness `json:"exact,omitempty"`
}

func (k *tally) wire() *wireTally {
	w := &wireTally{Alerts: k.alerts, Devices: k.devices, Seen: k.devicesSeen, Turns: k.turns, Inputs: k.inputs, Readings: k.readings,
		Cost: k.costs.BacktestCost, Failures: k.costs.worst(), Deployed: k.deployed, Reaches: int64(k.reaches), Born: int64(k.born), Exact: k.exact}
	w.Cost.Nanos = k.costs.nanos
	return w
}

func (w *wireTally) tally() *tally {
	k := &tally{alerts: w.Alerts, devices: w.Devices, devicesSeen: w.Seen, turns: w.Turns, inputs: w.Inputs, readings: w.Readings,
		costs: costs{BacktestCost: w.Cost, nanos: w.Cost.Nanos}, deployed: w.Deployed, reaches: dunlin.Time(w.Reaches), born: dunlin.Time(w.Born), exact: w.Exact}
	for _, f := range w.Failures {
		k.costs.add(f)
	}
	return k
}

// job is a back-test that runs for another node.
type job struct {
	id    uint64
	from  dunlin.NodeID
	gauge gauge
	asked chan struct{} // size 1: somebody polled
	stop  context.CancelCauseFunc
	done  chan struct{} // closed when tally and err are set
	tally *tally
	err   error
}

var (
	errStopped   = fmt.Errorf("%w: the back-test was stopped", dunlin.ErrUnavailable)
	errForgotten = fmt.Errorf("%w: nobody asks about the back-test any more", dunlin.ErrUnavailable)
)

// places says which of the shards can be read here, and who else to ask about the others.
func (s *Service) places(shards []dunlin.ShardID) (here []dunlin.ShardID, there map[dunlin.NodeID][]dunlin.ShardID, missing []dunlin.MissingShard) {
	if s.deps.Places == nil || s.deps.Caller == nil {
		return shards, nil, nil
	}
	there = make(map[dunlin.NodeID][]dunlin.ShardID)
	for _, sh := range shards {
		if _, ok := s.deps.Places.Fresh(sh); ok {
			here = append(here, sh)
			continue
		}
		nodes := slices.DeleteFunc(slices.Clone(s.deps.Places.Replicas(sh)), func(n dunlin.NodeID) bool { return n == s.cfg.Self })
		if len(nodes) == 0 {
			missing = append(missing, dunlin.MissingShard{Shard: sh, Reason: "no node is known that has it"})
			continue
		}
		// The one that has the least to do so far.
		best := slices.MinFunc(nodes, func(a, b dunlin.NodeID) int { return len(there[a]) - len(there[b]) })
		there[best] = append(there[best], sh)
	}
	return here, there, missing
}

// ask has another node run a part, and follows it. A node that can't be reached leaves its shards out.
func (s *Service) ask(ctx context.Context, p *part, b *dunlin.Backtest, t *task) (*tally, error) {
	o := order{Version: callVersion, Backtest: *b, Hash: t.candidate.Hash, Fetch: t.brought, ByTurn: t.byTurn, Exact: t.exact, Shards: p.shards}
	var tk ticket
	err := s.start(ctx, p.node, &o, &tk)
	if err != nil {
		p.excused = ctx.Err() == nil && errors.Is(err, dunlin.ErrUnavailable)
		return nil, fmt.Errorf("node %s: %w", p.node, err)
	}
	defer func() { // it stops by itself, too, but later
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = s.call(ctx, p.node, methodStop, tk, nil)
	}()
	silent := 0
	for {
		if !pause(ctx, s.cfg.PollEvery) {
			return nil, context.Cause(ctx)
		}
		var st standing
		if err := s.call(ctx, p.node, methodPoll, tk, &st); err != nil {
			if silent++; silent > pollsMax || errors.Is(err, dunlin.ErrNotFound) {
				p.excused = ctx.Err() == nil
				return nil, fmt.Errorf("node %s: %w", p.node, err)
			}
			continue
		}
		silent = 0
		p.gauge.done.Store(math.Float64bits(st.Progress.Done))
		p.gauge.inputs.Store(st.Progress.Inputs)
		p.gauge.readings.Store(st.Progress.Readings)
		p.gauge.alerts.Store(st.Progress.Alerts)
		p.gauge.failed.Store(st.Progress.Failed)
		switch {
		case !st.Ended:
		case st.Uneven:
			return nil, errUneven
		case st.Invalid:
			return nil, fmt.Errorf("node %s: %w: %s", p.node, dunlin.ErrInvalid, st.Error)
		case st.Error != "" || st.Tally == nil:
			return nil, fmt.Errorf("node %s: %w: %s", p.node, dunlin.ErrUnavailable, st.Error)
		default:
			return st.Tally.tally(), nil
		}
	}
}

// start begins a back-test elsewhere. A node that is busy may be done with what was stopped in a moment.
func (s *Service) start(ctx context.Context, node dunlin.NodeID, o *order, tk *ticket) error {
	ctx, cancel := context.WithTimeout(ctx, startMax)
	defer cancel()
	for waited := time.Duration(0); ; waited += s.cfg.PollEvery {
		err := s.call(ctx, node, methodStart, o, tk)
		if !errors.Is(err, dunlin.ErrOverloaded) || waited > busyMax || !pause(ctx, s.cfg.PollEvery) {
			return err
		}
	}
}

// pollsMax is how many questions in a row may go without an answer.
const pollsMax = 8

// pause waits; false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// call asks a node something in JSON.
func (s *Service) call(ctx context.Context, to dunlin.NodeID, method string, in, out any) error {
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false) // rules keep their hash
	if err := enc.Encode(in); err != nil {
		return err
	}
	reply, err := s.deps.Caller.Call(ctx, to, method, body.Bytes())
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(reply, out); err != nil {
		return fmt.Errorf("%w: answer to %s", dunlin.ErrInvalid, method)
	}
	return nil
}

// Serve answers another node.
func (s *Service) Serve(ctx context.Context, from dunlin.NodeID, method string, body []byte) ([]byte, error) {
	switch method {
	case methodStart:
		var o order
		if err := json.Unmarshal(body, &o); err != nil || o.Version != callVersion {
			return nil, fmt.Errorf("%w: %s of version %d", dunlin.ErrInvalid, method, o.Version)
		}
		return s.serveStart(ctx, from, &o)
	case methodPoll, methodStop:
		var tk ticket
		if err := json.Unmarshal(body, &tk); err != nil || tk.Version != callVersion {
			return nil, fmt.Errorf("%w: %s of version %d", dunlin.ErrInvalid, method, tk.Version)
		}
		s.mu.Lock()
		j := s.mu.job
		s.mu.Unlock()
		if j == nil || j.id != tk.ID || j.from != from {
			return nil, fmt.Errorf("%w: back-test %d", dunlin.ErrNotFound, tk.ID)
		}
		if method == methodStop {
			j.stop(errStopped)
			return nil, nil
		}
		return j.standing()
	case methodExplain:
		return s.serveExplain(ctx, body)
	case methodDrop:
		return nil, s.serveDrop(ctx, body)
	}
	return nil, fmt.Errorf("%w: call %q", dunlin.ErrInvalid, method)
}

// serveStart begins a back-test for another node. Run runs it.
func (s *Service) serveStart(ctx context.Context, from dunlin.NodeID, o *order) ([]byte, error) {
	for _, sh := range o.Shards {
		if int(sh) >= s.cfg.Shards {
			return nil, fmt.Errorf("%w: shard %d", dunlin.ErrInvalid, sh)
		}
	}
	var module []byte
	if o.Fetch {
		var err error
		if s.deps.Modules == nil {
			return nil, fmt.Errorf("%w: no modules come here", dunlin.ErrUnavailable)
		}
		if module, err = s.deps.Modules.Fetch(ctx, from, o.Hash); err != nil {
			return nil, err
		}
	}
	t, err := s.plan(ctx, &o.Backtest, module)
	if err != nil {
		return nil, err
	}
	if t.candidate.Hash != o.Hash {
		return nil, fmt.Errorf("%w: the candidate is %s here", dunlin.ErrUnavailable, t.candidate.Hash)
	}
	t.byTurn, t.exact = o.ByTurn, o.Exact
	j := &job{from: from, asked: make(chan struct{}, 1), done: make(chan struct{})}
	lease, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	j.stop = stop
	select {
	case s.jobs <- func(ctx context.Context) { s.work(ctx, lease, j, t, module, o.Shards) }:
	default:
		stop(nil)
		return nil, fmt.Errorf("%w: node %s runs a back-test for somebody already", dunlin.ErrOverloaded, s.cfg.Self)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.ids++
	j.id = s.mu.ids ^ uint64(s.cfg.Clock())<<20 // another one after a restart
	s.mu.job = j
	return json.Marshal(ticket{Version: callVersion, ID: j.id})
}

// work runs a job until it is done, stopped, or nobody asks about it any more.
func (s *Service) work(ctx, lease context.Context, j *job, t *task, module []byte, shards []dunlin.ShardID) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer j.stop(nil)
	ended := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		timer := time.NewTimer(s.cfg.PollMax)
		defer timer.Stop()
		for {
			select {
			case <-j.asked:
				timer.Reset(s.cfg.PollMax)
			case <-timer.C:
				stop(errForgotten)
				return
			case <-lease.Done():
				stop(context.Cause(lease))
				return
			case <-ended:
				return
			}
		}
	}()
	j.tally, j.err = s.here(ctx, t, module, shards, &j.gauge)
	close(ended)
	<-watched
	close(j.done)
}

// standing tells how a job is.
func (j *job) standing() ([]byte, error) {
	select {
	case j.asked <- struct{}{}:
	default:
	}
	g := &j.gauge
	st := standing{Version: callVersion, Progress: dunlin.BacktestProgress{Done: math.Float64frombits(g.done.Load()), Inputs: g.inputs.Load(),
		Readings: g.readings.Load(), Alerts: g.alerts.Load(), Failed: g.failed.Load()}}
	select {
	case <-j.done:
	default:
		return json.Marshal(st)
	}
	st.Ended = true
	switch {
	case errors.Is(j.err, errUneven):
		st.Uneven = true
	case j.err != nil:
		st.Error, st.Invalid = j.err.Error(), errors.Is(j.err, dunlin.ErrInvalid)
	default:
		st.Tally = j.tally.wire()
	}
	for {
		b, err := json.Marshal(st)
		if err != nil || len(b) <= answerBytesMax || st.Tally == nil || len(st.Tally.Devices) == 0 {
			return b, err
		}
		st.Tally.Devices = st.Tally.Devices[:len(st.Tally.Devices)/2]
	}
}
