package replay

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// Defaults and bounds of a back-test.
const (
	warmUpDefault  = 24 * time.Hour
	nearDefault    = 15 * time.Minute
	devicesDefault = 100
	devicesMax     = 1000
	prefixMin      = 6 // hex digits that name a version
	progressEvery  = 250 * time.Millisecond
)

var errBusy = fmt.Errorf("%w: a back-test is running on this node already", dunlin.ErrOverloaded)

// Backtest implements dunlin.Replayer.
func (s *Service) Backtest(ctx context.Context, b dunlin.Backtest, module []byte, progress func(dunlin.BacktestProgress)) (*dunlin.BacktestReport, error) {
	select {
	case s.own <- struct{}{}:
		defer func() { <-s.own }()
	default:
		return nil, errBusy
	}
	began := s.cfg.Clock()
	t, err := s.plan(ctx, &b, module)
	if err != nil {
		return nil, fmt.Errorf("back-test: %w", err)
	}
	k, missing, err := s.everywhere(ctx, &b, t, module, progress)
	if err != nil {
		return nil, fmt.Errorf("back-test: %w", err)
	}
	rep := &dunlin.BacktestReport{Domain: b.Domain, Stage: t.candidate.Plugin, Mode: t.mode(), Candidate: t.candidate.Hash, Against: "recorded",
		Deployed: k.deployed, Since: t.period.since, Until: t.period.until, Reaches: cmp.Or(k.reaches, k.born), Devices: k.devicesSeen, Turns: k.turns, Inputs: k.inputs,
		Readings: k.readings, Alerts: k.alerts, ByDevice: k.devices, Cost: k.costs.BacktestCost, Failures: k.costs.worst(), Exact: k.exact,
		Took: dunlin.Duration(s.cfg.Clock().Sub(began)), Missing: missing}
	if t.rerun() {
		rep.Against = "re-run"
	}
	rep.Cost.Nanos = k.costs.nanos
	return rep, nil
}

// plan looks up and checks what a back-test needs.
func (s *Service) plan(ctx context.Context, b *dunlin.Backtest, module []byte) (*task, error) {
	b.Tenant = cmp.Or(b.Tenant, dunlin.DefaultTenant)
	now := s.cfg.Clock()
	if b.Until == 0 || b.Until > now {
		b.Until = now
	}
	switch {
	case b.Since == 0 || b.Since >= b.Until:
		return nil, fmt.Errorf("%w: since must be given, and before until (%s)", dunlin.ErrInvalid, b.Until)
	case b.WarmUp < 0 || b.Near < 0 || b.DevicesMax < 0:
		return nil, fmt.Errorf("%w: warm_up, near and devices_max must not be negative", dunlin.ErrInvalid)
	}
	warm := dunlin.Duration(cmp.Or(time.Duration(b.WarmUp), warmUpDefault))
	near := cmp.Or(time.Duration(b.Near), nearDefault)
	t := &task{tenant: b.Tenant, domain: b.Domain, device: b.Device, begin: max(b.Since.Add(-time.Duration(warm)), 0),
		period:  period{since: b.Since, until: b.Until, near: dunlin.Time(near.Microseconds())},
		listMax: min(cmp.Or(b.DevicesMax, devicesDefault), devicesMax)}
	if _, err := s.deps.Registry.Domain(ctx, b.Tenant, b.Domain); err != nil {
		return nil, err
	}
	if r := s.deps.Registry.Rules(b.Tenant, b.Domain); r != nil {
		t.pipeline = slices.Clone(r.Stages)
	}
	for i := range t.pipeline {
		t.pipeline[i].Trial, t.pipeline[i].Share = nil, 1
	}
	if err := t.place(b); err != nil {
		return nil, err
	}
	return t, s.candidate(ctx, t, b, module)
}

// place finds the stage that the candidate is to take the place of.
func (t *task) place(b *dunlin.Backtest) error {
	var names []string
	for i := range t.pipeline {
		st := &t.pipeline[i]
		names = append(names, st.Plugin)
		if b.Stage != "" && st.Plugin == b.Stage || b.Stage == "" && b.Plugin != "" && st.Name == b.Plugin {
			t.index = i
			return nil
		}
	}
	switch {
	case len(t.pipeline) == 0: // it would be the first one
		t.pipeline = []dunlin.Stage{{Plugin: cmp.Or(b.Stage, b.Plugin, "candidate"), Share: 1}}
	case b.Stage != "":
		return fmt.Errorf("%w: the pipeline of domain %s has no stage %q; it has %s", dunlin.ErrInvalid, b.Domain, b.Stage, strings.Join(names, ", "))
	case len(t.pipeline) > 1:
		return fmt.Errorf("%w: the pipeline of domain %s has several stages: name the one that the candidate is to take the place of: %s",
			dunlin.ErrInvalid, b.Domain, strings.Join(names, ", "))
	}
	return nil
}

// candidate makes the candidate's stage.
func (s *Service) candidate(ctx context.Context, t *task, b *dunlin.Backtest, module []byte) error {
	deployed := &t.pipeline[t.index]
	st := dunlin.Stage{Plugin: deployed.Plugin, Name: cmp.Or(b.Plugin, deployed.Name), Config: deployed.Config, Sees: deployed.Sees, Share: 1}
	if b.Config != nil {
		st.Config = compact(b.Config)
		if len(st.Config) == 0 || st.Config[0] != '{' {
			return fmt.Errorf("%w: a configuration is a JSON object", dunlin.ErrInvalid)
		}
	}
	switch {
	case module != nil && b.Rules != nil:
		return fmt.Errorf("%w: the candidate is a module or rules, not both", dunlin.ErrInvalid)
	case module != nil:
		st.Hash, t.brought = sha256.Sum256(module), true
	case b.Rules != nil:
		st.Rules, st.Config, st.Name = compact(b.Rules), nil, ""
		st.Hash = sha256.Sum256(st.Rules)
		if sameJSON(st.Rules, deployed.Rules) { // what is kept may be written in another way
			st.Rules, st.Hash = deployed.Rules, deployed.Hash
		}
	case b.Plugin == "" && b.Version == "" && deployed.Rules != nil:
		st.Rules, st.Hash = deployed.Rules, deployed.Hash
	case st.Name == "":
		return fmt.Errorf("%w: name a candidate: a module, rules, or a version of a plugin", dunlin.ErrInvalid)
	default:
		p, err := s.deps.Registry.Plugin(ctx, b.Tenant, st.Name)
		if err != nil {
			return err
		}
		if st.Hash, err = versionOf(p, b.Version); err != nil {
			return err
		}
	}
	st.Made = madeBy(&st)
	t.candidate = st
	t.exact = st.Hash == deployed.Hash && string(compact(st.Config)) == string(compact(deployed.Config)) && string(st.Rules) == string(compact(deployed.Rules))
	return nil
}

func sameJSON(a, b json.RawMessage) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// versionOf finds a version of a plugin by its name, its hash or the beginning of that.
func versionOf(p *dunlin.Plugin, version string) (dunlin.ModuleHash, error) {
	version = strings.TrimPrefix(version, "v")
	if version == "" {
		return p.Hash, nil
	}
	var found []dunlin.ModuleHash
	hashes := append([]dunlin.ModuleHash{p.Hash}, p.Previous...)
	for i := range p.Versions {
		v := &p.Versions[i]
		if v.Version == version {
			return v.Hash, nil
		}
		hashes = append(hashes, v.Hash)
	}
	for _, h := range hashes {
		if len(version) >= prefixMin && strings.HasPrefix(h.String(), version) && !slices.Contains(found, h) {
			found = append(found, h)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return dunlin.ModuleHash{}, fmt.Errorf("%w: plugin %s has no version %q", dunlin.ErrNotFound, p.Name, version)
	}
	return dunlin.ModuleHash{}, fmt.Errorf("%w: %d versions of plugin %s begin with %q", dunlin.ErrInvalid, len(found), p.Name, version)
}

// madeBy marks what a stage makes as the registry does.
func madeBy(st *dunlin.Stage) dunlin.Made {
	sum := sha256.Sum256(compact(st.Config))
	return dunlin.Made{Module: max(binary.BigEndian.Uint32(st.Hash[:]), 1), Config: max(binary.BigEndian.Uint32(sum[:]), 1)}
}

func compact(b json.RawMessage) json.RawMessage {
	var c bytes.Buffer
	if len(b) == 0 || json.Compact(&c, b) != nil {
		return b
	}
	return c.Bytes()
}

// everywhere runs a back-test on all shards, wherever they are; turn by turn if it turns out that it has to be.
func (s *Service) everywhere(ctx context.Context, b *dunlin.Backtest, t *task, module []byte, progress func(dunlin.BacktestProgress)) (*tally, []dunlin.MissingShard, error) {
	if module != nil && s.deps.Modules != nil { // for others to fetch
		if err := s.deps.Modules.Stage(t.candidate.Hash, module); err != nil {
			return nil, nil, err
		}
		defer s.deps.Modules.Unstage(t.candidate.Hash)
	}
	k, missing, err := s.round(ctx, b, t, module, progress)
	if errors.Is(err, errUneven) && !t.byTurn {
		s.cfg.Log.Info("a back-test goes turn by turn: handing several turns over together makes a difference",
			slog.String("domain", string(t.domain)), slog.String("module", t.candidate.Hash.String()), slog.String("because", err.Error()))
		t.byTurn = true
		k, missing, err = s.round(ctx, b, t, module, progress)
	}
	return k, missing, err
}

// round runs a back-test on all shards once.
func (s *Service) round(ctx context.Context, b *dunlin.Backtest, t *task, module []byte, progress func(dunlin.BacktestProgress)) (*tally, []dunlin.MissingShard, error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	here, there, missing := s.places(s.shardsOf(t))
	all := float64(max(len(here), 1))
	var parts []*part
	var wg sync.WaitGroup
	add := func(p *part, run func(context.Context) (*tally, error)) {
		parts = append(parts, p)
		wg.Go(func() {
			if p.tally, p.err = run(ctx); p.err != nil && !p.excused {
				stop(p.err)
			}
		})
	}
	g := &gauge{}
	add(&part{shards: here, gauge: g}, func(ctx context.Context) (*tally, error) { return s.here(ctx, t, module, here, g) })
	for node, shards := range there {
		all += float64(len(shards))
		p := &part{shards: shards, node: node, gauge: &gauge{}}
		add(p, func(ctx context.Context) (*tally, error) { return s.ask(ctx, p, b, t) })
	}
	watch(&wg, parts, all, progress)
	return together(parts, missing, t.listMax)
}

func (t *task) mode() dunlin.BacktestMode {
	switch {
	case t.exact:
		return dunlin.BacktestExact
	case t.byTurn:
		return dunlin.BacktestByTurn
	}
	return dunlin.BacktestCandidate
}

// part is the shards of a back-test that one node runs.
type part struct {
	shards  []dunlin.ShardID
	node    dunlin.NodeID // 0: this one
	gauge   *gauge
	tally   *tally
	err     error
	excused bool
}

// watch waits for the parts and tells how far they are.
func watch(wg *sync.WaitGroup, parts []*part, all float64, progress func(dunlin.BacktestProgress)) {
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		if progress == nil {
			continue
		}
		var p dunlin.BacktestProgress
		for _, part := range parts {
			g := part.gauge
			p.Done += math.Float64frombits(g.done.Load()) / all
			p.Inputs += g.inputs.Load()
			p.Readings += g.readings.Load()
			p.Alerts += g.alerts.Load()
			p.Failed += g.failed.Load()
		}
		p.Done = min(p.Done, 1)
		progress(p)
	}
}

// shardsOf are the shards that a task concerns.
func (s *Service) shardsOf(t *task) (shards []dunlin.ShardID) {
	if t.device != "" {
		return []dunlin.ShardID{s.cfg.ShardOf(dunlin.DeviceKey{Tenant: t.tenant, Device: t.device})}
	}
	for i := range s.cfg.Shards {
		shards = append(shards, dunlin.ShardID(i))
	}
	return shards
}

// here runs a back-test on shards of this node.
func (s *Service) here(ctx context.Context, t *task, module []byte, shards []dunlin.ShardID, g *gauge) (k *tally, err error) {
	k = &tally{}
	if len(shards) == 0 {
		return k, nil
	}
	s.met.began()
	defer func() { s.met.ended(k, err) }()
	p, err := s.deps.Open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = p.Close() }() // what it held is memory
	if err := s.install(ctx, p, t, module); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var mu sync.Mutex // guards k and next
	var wg sync.WaitGroup
	next := 0
	take := func() (sh dunlin.ShardID, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		if next == len(shards) || ctx.Err() != nil {
			return 0, false
		}
		next++
		return shards[next-1], true
	}
	for range min(s.cfg.Workers, len(shards)) {
		wg.Go(func() {
			for sh, ok := take(); ok; sh, ok = take() {
				r := newShardRun(t, &s.cfg, p, g)
				if err := s.shard(ctx, r, sh); err != nil {
					stop(fmt.Errorf("shard %d: %w", sh, err))
					return
				}
				mu.Lock()
				k.merge(&r.tally, t.listMax)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return k, nil
}

// install gets the modules ready.
func (s *Service) install(ctx context.Context, p Processor, t *task, module []byte) error {
	if t.candidate.Rules == nil {
		if module == nil {
			var err error
			if module, err = s.deps.Module(t.candidate.Hash); err != nil {
				return fmt.Errorf("module %s: %w", t.candidate.Hash, err)
			}
		}
		if err := p.Install(ctx, t.candidate.Hash, module); err != nil {
			return err
		}
	}
	if err := p.TryConfig(ctx, &t.candidate); err != nil {
		return fmt.Errorf("the candidate: %w", err)
	}
	return nil
}

func (s *Service) shard(ctx context.Context, r *shardRun, sh dunlin.ShardID) error {
	rd, err := s.deps.Past(sh, r.begin, false)
	if err != nil {
		return err
	}
	defer rd.Close()
	return r.run(ctx, rd)
}

// together merges what the parts came to. Shards whose node could not be asked are missing.
func together(parts []*part, missing []dunlin.MissingShard, most int) (*tally, []dunlin.MissingShard, error) {
	k := &tally{}
	for _, p := range parts {
		switch {
		case p.err == nil:
			k.merge(p.tally, most)
		case p.excused:
			for _, sh := range p.shards {
				missing = append(missing, dunlin.MissingShard{Shard: sh, Reason: p.err.Error()})
			}
		default:
			return nil, nil, p.err
		}
	}
	return k, missing, nil
}
