package nemesis

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/sdk/client"
)

// fault is something that is done to a cluster. do does it, holds it, and takes it back; what it did to whom is told.
type fault struct {
	name string
	net  bool // needs the switched network
	disk bool // needs file systems of its own
	do   func(b *Bench, ctx context.Context) (string, error)
}

// faults lists them in the order in which rounds go through them.
func faults() []fault {
	return []fault{
		{name: "kill", do: func(b *Bench, ctx context.Context) (string, error) { return b.kill(ctx, b.any()) }},
		{name: "stop", do: (*Bench).freeze},
		{name: "isolate", net: true, do: (*Bench).isolate},
		{name: "kill-owner", do: (*Bench).killOwner},
		{name: "loss", net: true, do: (*Bench).loss},
		{name: "restart", do: (*Bench).restart},
		{name: "one-way", net: true, do: (*Bench).oneWay},
		{name: "kill-two", do: (*Bench).killTwo},
		{name: "full-disk", disk: true, do: (*Bench).fullDisk},
		{name: "delay", net: true, do: (*Bench).delay},
		{name: "kill-controller", do: (*Bench).killController},
		{name: "partial", net: true, do: (*Bench).partial},
		{name: "slow-disk", disk: true, do: (*Bench).slowDisk},
		{name: "split", net: true, do: (*Bench).split},
		{name: "kill-all", do: (*Bench).killAll},
		{name: "grow", do: (*Bench).grow},
	}
}

func (b *Bench) any() *proc { return b.procs[b.rng.IntN(b.cfg.Nodes)] }

// span is a random duration.
func (b *Bench) span(from, to time.Duration) time.Duration {
	return (from + time.Duration(b.rng.Int64N(int64(to-from)))).Round(10 * time.Millisecond)
}

// kill is kill -9, some time without the node, and its start.
func (b *Bench) kill(ctx context.Context, p *proc) (string, error) {
	down := b.span(200*time.Millisecond, 4*time.Second)
	if err := p.end(syscall.SIGKILL); err != nil {
		return p.name, err
	}
	if err := pause(ctx, down); err != nil {
		return p.name, err
	}
	return fmt.Sprintf("%s for %v", p.name, down), p.start(ctx)
}

func (b *Bench) killOwner(ctx context.Context) (string, error) {
	owns, _, err := b.leaders(ctx)
	if err != nil {
		return "", err
	}
	most := b.procs[0]
	for _, p := range b.procs[:b.cfg.Nodes] {
		if owns[p.name] > owns[most.name] {
			most = p
		}
	}
	what, err := b.kill(ctx, most)
	return fmt.Sprintf("%s, which owned %d shards", what, owns[most.name]), err
}

func (b *Bench) killController(ctx context.Context) (string, error) {
	_, name, err := b.leaders(ctx)
	if err != nil {
		return "", err
	}
	for _, p := range b.procs[:b.cfg.Nodes] {
		if p.name == name {
			return b.kill(ctx, p)
		}
	}
	return "", fmt.Errorf("the controller %q is none of the cluster", name)
}

// killTwo leaves no majority (of five: the least one that there is), and looks that nothing new is acked meanwhile.
func (b *Bench) killTwo(ctx context.Context) (string, error) {
	order := b.rng.Perm(b.cfg.Nodes)
	first, second := b.procs[order[0]], b.procs[order[1]]
	down := b.span(2*time.Second, 5*time.Second)
	if err := errors.Join(first.end(syscall.SIGKILL), second.end(syscall.SIGKILL)); err != nil {
		return "", err
	}
	what := fmt.Sprintf("%s and %s for %v", first.name, second.name, down)
	return what, b.without(ctx, down, first, second)
}

func (b *Bench) killAll(ctx context.Context) (string, error) {
	ps := b.procs[:b.cfg.Nodes]
	down := b.span(100*time.Millisecond, time.Second)
	var errs []error
	for _, p := range ps {
		errs = append(errs, p.end(syscall.SIGKILL))
	}
	if err := errors.Join(errs...); err != nil {
		return "", err
	}
	return fmt.Sprintf("all for %v", down), b.without(ctx, down, ps...)
}

// without waits while nodes are dead and then starts them at once. Without a majority nothing that was begun since may be acked.
func (b *Bench) without(ctx context.Context, down time.Duration, dead ...*proc) error {
	since := b.now()
	if err := pause(ctx, down); err != nil {
		return err
	}
	if len(dead) > b.cfg.Nodes/2 {
		if n := b.fleet.ackedSince(since); n > 0 {
			b.fail("false acks", fmt.Sprintf("%d readings that were sent when there was no majority were acked", n))
		}
	}
	ready := make([]<-chan error, len(dead))
	for i, p := range dead {
		var err error
		if ready[i], err = p.launch(ctx); err != nil {
			return err
		}
	}
	for i, p := range dead {
		select {
		case err := <-ready[i]:
			if err != nil {
				return err
			}
		case <-time.After(readyMax):
			return fmt.Errorf("%s is not ready after %v", p.name, readyMax)
		}
	}
	return nil
}

// freeze stops a process for a while without ending it, as a hypervisor does.
func (b *Bench) freeze(ctx context.Context) (string, error) {
	p, span := b.any(), b.span(time.Second, 8*time.Second)
	if err := p.signal(syscall.SIGSTOP); err != nil {
		return p.name, err
	}
	err := pause(ctx, span)
	return fmt.Sprintf("%s for %v", p.name, span), errors.Join(err, p.signal(syscall.SIGCONT))
}

func (b *Bench) restart(ctx context.Context) (string, error) {
	p := b.any()
	if err := p.end(syscall.SIGTERM); err != nil {
		return p.name, err
	}
	return p.name, p.start(ctx)
}

// during holds a state of the network.
func (b *Bench) during(ctx context.Context, what string, from, to time.Duration) (string, error) {
	span := b.span(from, to)
	err := pause(ctx, span)
	b.net.clear()
	return fmt.Sprintf("%s for %v", what, span), err
}

// isolate cuts a node off from all others, but not from its devices.
func (b *Bench) isolate(ctx context.Context) (string, error) {
	p := b.any()
	for i := 1; i <= b.cfg.Nodes; i++ {
		b.net.set(p.i, i, weather{loss: 1})
		b.net.set(i, p.i, weather{loss: 1})
	}
	return b.during(ctx, p.name, time.Second, 8*time.Second)
}

// oneWay lets a node hear but not be heard, or be heard but not hear.
func (b *Bench) oneWay(ctx context.Context) (string, error) {
	p, deaf := b.any(), b.rng.IntN(2) == 0
	for i := 1; i <= b.cfg.Nodes; i++ {
		if deaf {
			b.net.set(i, p.i, weather{loss: 1})
		} else {
			b.net.set(p.i, i, weather{loss: 1})
		}
	}
	what := p.name + " mute"
	if deaf {
		what = p.name + " deaf"
	}
	return b.during(ctx, what, time.Second, 8*time.Second)
}

// partial cuts one pair: both still see the others.
func (b *Bench) partial(ctx context.Context) (string, error) {
	order := b.rng.Perm(b.cfg.Nodes)
	x, y := b.procs[order[0]], b.procs[order[1]]
	b.net.set(x.i, y.i, weather{loss: 1})
	b.net.set(y.i, x.i, weather{loss: 1})
	return b.during(ctx, x.name+" from "+y.name, 2*time.Second, 8*time.Second)
}

// split cuts a minority off, with all devices on its side of the wire: they only see the minority.
func (b *Bench) split(ctx context.Context) (string, error) {
	order := b.rng.Perm(b.cfg.Nodes)
	minority := order[:b.cfg.Nodes/2]
	small := map[int]bool{}
	var names []string
	for _, i := range minority {
		small[i+1] = true
		names = append(names, b.procs[i].name)
	}
	span := b.span(2*time.Second, 6*time.Second)
	for i := 1; i <= b.cfg.Nodes; i++ {
		for j := 0; j <= b.cfg.Nodes; j++ {
			if small[i] != (j == 0 || small[j]) {
				b.net.set(i, j, weather{loss: 1})
				b.net.set(j, i, weather{loss: 1})
			}
		}
	}
	since := b.now()
	err := pause(ctx, span)
	if n := b.fleet.ackedSince(since); n > 0 {
		b.fail("false acks", fmt.Sprintf("%d readings that were sent to a minority were acked", n))
	}
	b.net.clear()
	return fmt.Sprintf("%s with all devices for %v", strings.Join(names, "+"), span), err
}

func (b *Bench) loss(ctx context.Context) (string, error) {
	share := 0.05 + 0.15*b.rng.Float64()
	b.between(weather{loss: share})
	return b.during(ctx, fmt.Sprintf("%.0f %%", share*100), 3*time.Second, 6*time.Second)
}

func (b *Bench) delay(ctx context.Context) (string, error) {
	span := b.span(50*time.Millisecond, 200*time.Millisecond)
	b.between(weather{delay: span / 2})
	return b.during(ctx, fmt.Sprintf("%v there and back", span), 3*time.Second, 6*time.Second)
}

// between sets the weather between all nodes.
func (b *Bench) between(w weather) {
	for i := 1; i <= b.cfg.Nodes; i++ {
		for j := 1; j <= b.cfg.Nodes; j++ {
			b.net.set(i, j, w)
		}
	}
}

// fullDisk leaves a node no byte. It may end; then it is started again once there is room.
func (b *Bench) fullDisk(ctx context.Context) (string, error) {
	p, span := b.any(), b.span(2*time.Second, 6*time.Second)
	p.expect(true)
	if err := p.disk.fill(); err != nil {
		return p.name, errors.Join(err, p.disk.empty())
	}
	err := errors.Join(pause(ctx, span), p.disk.empty())
	what := fmt.Sprintf("%s for %v, lived", p.name, span)
	if !p.running() && err == nil {
		return strings.TrimSuffix(what, "lived") + "ended", p.start(ctx)
	}
	p.expect(false)
	return what, err
}

// slowDisk lets a node's disk stand still for moments.
func (b *Bench) slowDisk(ctx context.Context) (string, error) {
	p, span := b.any(), b.span(3*time.Second, 6*time.Second)
	still, going := b.span(50*time.Millisecond, 500*time.Millisecond), b.span(5*time.Millisecond, 50*time.Millisecond)
	slow, cancel := context.WithTimeout(ctx, span)
	defer cancel()
	return fmt.Sprintf("%s for %v: %v still, %v going", p.name, span, still, going), p.disk.stutter(slow, still, going)
}

// grow lets one more node join, waits until it has its part, lets it leave, and ends it when it is empty.
func (b *Bench) grow(ctx context.Context) (string, error) {
	p := b.procs[b.cfg.Nodes]
	began := b.now()
	if err := p.start(ctx); err != nil {
		return p.name, err
	}
	if err := b.member(ctx, p.name, func(m *dunlin.Member) bool { return m != nil && m.Replicas > 1 && m.Leads > 0 }); err != nil {
		return p.name, fmt.Errorf("join: %w", err)
	}
	joined := b.now() - began
	if err := b.eyes.compare(ctx, b.procs); err != nil { // it has its shards from snapshots
		return p.name, err
	}
	err := b.anybody(ctx, 10*time.Second, func(c *client.Client) error { return c.SetMember(ctx, p.name, dunlin.MemberLeaving) })
	if err != nil {
		return p.name, fmt.Errorf("leave: %w", err)
	}
	p.expect(true) // one that has left has nothing to do any more
	began = b.now()
	if err := b.member(ctx, p.name, func(m *dunlin.Member) bool { return m == nil || m.State == dunlin.MemberLeft }); err != nil {
		return p.name, fmt.Errorf("leave: %w", err)
	}
	left := b.now() - began
	if err := p.end(syscall.SIGTERM); err != nil {
		return p.name, err
	}
	return fmt.Sprintf("%s: has shards after %.1f s, has left after %.1f s", p.name, joined.Seconds(), left.Seconds()), os.RemoveAll(p.data)
}

// moveMax is for a node's join or leave.
const moveMax = 90 * time.Second

func (b *Bench) member(ctx context.Context, name string, is func(*dunlin.Member) bool) error {
	deadline := b.now() + moveMax
	for {
		var found *dunlin.Member
		err := b.anybody(ctx, 5*time.Second, func(c *client.Client) error {
			ms, err := c.Members(ctx)
			for i := range ms {
				if ms[i].Name == name {
					found = &ms[i]
				}
			}
			return err
		})
		if err == nil && is(found) {
			return nil
		}
		if b.now() > deadline {
			return fmt.Errorf("not done after %v: %+v %w", moveMax, found, err)
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}
