package nemesis

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/sdk/client"
)

// Bounds of coming back after a fault.
const (
	ackMax     = 30 * time.Second // until every device gets something in
	healthyMax = 60 * time.Second // until every shard has its owner and all replicas
)

// fail notes something that must not be.
func (b *Bench) fail(kind, text string) {
	b.say("FAILED %s: %s", kind, text)
	b.report.Failures = append(b.report.Failures, Failure{Round: b.report.Rounds + 1, Fault: b.fault, Kind: kind, Text: text})
}

// chosen lists the faults that are asked for and can be done here.
func (b *Bench) chosen() (list []fault) {
	for _, f := range faults() {
		asked := len(b.cfg.Faults) == 0 || slices.Contains(b.cfg.Faults, f.name)
		can := (!f.net || b.net != nil) && (!f.disk || !slices.ContainsFunc(b.procs, func(p *proc) bool { return p.disk == nil }))
		switch {
		case asked && can:
			list = append(list, f)
		case asked && len(b.cfg.Faults) > 0:
			b.say("%s can't be done here", f.name)
		}
	}
	return list
}

func (b *Bench) rounds(ctx context.Context, r *Report) error {
	b.report = r
	list := b.chosen()
	if len(list) == 0 {
		return errors.New("nemesis: none of the faults can be done here")
	}
	b.from = b.fleet.mark()
	b.fleet.gate.set(true)
	if err := b.fleet.awaitAcks(ctx, 0, ackMax); err != nil {
		return err
	}
	for n := range b.cfg.Rounds {
		if err := b.round(ctx, list[n%len(list)]); err != nil {
			return fmt.Errorf("round %d (%s): %w", n+1, b.fault, err)
		}
		if len(r.Failures) > 0 && !b.cfg.KeepOn {
			break
		}
	}
	return nil
}

// round is calm, a fault, the way back, and a look at everything.
func (b *Bench) round(ctx context.Context, f fault) error {
	b.fault = f.name
	failed := len(b.report.Failures)
	from := b.from
	began := b.now()
	if err := pause(ctx, b.cfg.Calm); err != nil {
		return err
	}
	struck := b.now()
	calm := b.fleet.gaps(began+200*time.Millisecond, struck) // the first 200 ms: everybody starts at once
	b.report.calm = append(b.report.calm, calm[len(calm)/2])
	slices.Sort(b.report.calm)
	b.report.Calm = b.report.calm[len(b.report.calm)/2]

	what, err := f.do(b, ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		b.fail("fault", fmt.Sprintf("%s: %v", what, err))
	}
	healed := b.now()
	if err := b.recover(ctx, healed); err != nil {
		return err
	}
	gaps := b.fleet.gaps(struck, b.now())
	c, err := b.look(ctx, from)
	if err != nil {
		return err
	}
	row := b.report.row(f.name)
	row.Rounds++
	row.add(c)
	b.report.Total.add(c)
	b.report.Rounds++
	for i := range gaps {
		gaps[i] = max(gaps[i]-b.report.Calm, 0)
	}
	row.measured(gaps)
	b.say("round %3d %-15s %s; acked %d, lost %d, pause p50 %.2f s, max %.2f s; back after %.1f s", b.report.Rounds, f.name, what, c.Acked, c.Lost,
		gaps[len(gaps)/2].Seconds(), gaps[len(gaps)-1].Seconds(), (b.healed - healed).Seconds())
	if len(b.report.Failures) == failed {
		return b.forget()
	}
	return b.keep()
}

// recover waits until every device is heard and the cluster is whole, and starts what ended by itself.
func (b *Bench) recover(ctx context.Context, healed time.Duration) error {
	b.mu.Lock()
	deaths := b.mu.deaths
	b.mu.deaths = nil
	b.mu.Unlock()
	for _, text := range deaths {
		b.fail("ended by itself", text)
	}
	for _, p := range b.procs[:b.cfg.Nodes] {
		if !p.running() {
			if err := p.start(ctx); err != nil {
				return err
			}
		}
	}
	if err := b.fleet.awaitAcks(ctx, healed, ackMax); err != nil {
		b.fail("stuck", err.Error())
		b.diagnose(ctx, healed)
	}
	err := b.healthy(ctx, healthyMax)
	b.healed = b.now()
	if err != nil && ctx.Err() == nil {
		b.fail("not healthy", err.Error())
	}
	return context.Cause(ctx)
}

// look holds the load and checks everything since the mark.
func (b *Bench) look(ctx context.Context, from mark) (count, error) {
	if err := b.fleet.halt(ctx, ackMax); err != nil {
		b.fail("stuck", err.Error())
	}
	defer b.fleet.gate.set(true)
	c, err := b.check(ctx, from)
	b.from = b.fleet.mark()
	err = errors.Join(err, b.eyes.compare(ctx, b.procs[:b.cfg.Nodes]), b.eyes.readLogs())
	seen, found := b.eyes.ledger.take()
	c.add(seen)
	for _, f := range found {
		b.fail(f.kind, f.text)
	}
	if err != nil && ctx.Err() == nil {
		b.fail("no answer", err.Error())
		err = nil
	}
	return c, err
}

// keep copies the logs of a failed round aside, so that the rounds to come don't take them along.
func (b *Bench) keep() error {
	return os.CopyFS(filepath.Join(b.cfg.Dir, fmt.Sprintf("failed-%03d", b.report.Rounds)), os.DirFS(filepath.Join(b.cfg.Dir, "logs")))
}

// forget removes the logs of processes that are no more, after a round in which nothing was wrong.
func (b *Bench) forget() error {
	now := map[string]bool{}
	for _, p := range b.procs {
		now[p.log()] = true
	}
	logs, err := filepath.Glob(filepath.Join(b.cfg.Dir, "logs", "*.log"))
	if err != nil {
		return err
	}
	for _, name := range logs {
		if now[name] {
			continue
		}
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	return nil
}

// diagnose asks every node to take one more reading of the devices that get nothing in, and notes the answers.
func (b *Bench) diagnose(ctx context.Context, since time.Duration) {
	for d := range b.fleet.late(since) {
		for _, p := range b.procs[:b.cfg.Nodes] {
			began := b.now()
			receipt, err := b.client(p).Send(ctx, dunlin.DeviceID(d), "application/json", []byte(`{"probe":1}`), "")
			b.say("%s takes a reading of %s after %.2f s: %+v %v", p.name, d, (b.now() - began).Seconds(), receipt, err)
		}
		_ = b.anybody(ctx, time.Second, func(c *client.Client) error { // said, or not known
			t, err := c.State(ctx, dunlin.DeviceID(d))
			b.say("its twin: %+v %v", t, err)
			return err
		})
	}
}
