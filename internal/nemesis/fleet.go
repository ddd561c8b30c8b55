package nemesis

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// spikeEvery is how often a device sends a reading that lifts the mean of five over the limit by itself: one alert, which is
// cleared when it has left the five.
const spikeEvery = 20

// write is one reading of a device.
type write struct {
	at    int64 // Unix milliseconds, the reading's own time
	value int64 // 1/10000 °C, unlike any other of this device
	call  time.Duration
	done  time.Duration // when it was acked; 0: not yet
	tries int
	story []string // of its attempts, if there was more than one
}

func (w *write) spike() bool { return w.value >= 1_000_0000 }

// device is a made-up device and all that it knows.
type device struct {
	id   string
	c    door
	home int // the node that it sends to first

	more, alertsMore int // turns and alerts that were too many at the last look

	mu struct {
		sync.Mutex
		writes  []write
		lastErr error
		strange []string // answers that a good message must not get
	}
}

// fleet is the load: devices, each with one message in flight, and readers of their twins.
type fleet struct {
	b       *Bench
	devices []*device
	gate    gate
	reads   struct {
		sync.Mutex
		ops []reading
	}
}

// reading is what a reader saw.
type reading struct {
	device     int
	node       int
	value      int64 // as write.value; 0: the device is unknown
	call, done time.Duration
}

// storyMax bounds the attempts that are told of.
const storyMax = 20

var errAcked = errors.New("acked")

// gate lets workers through, or holds them when they have finished what they do.
type gate struct {
	mu      sync.Mutex
	open    chan struct{} // closed: pass
	working int
	idle    chan struct{} // closed when closed and nobody works
}

func newGate() gate { return gate{open: make(chan struct{})} }

// enter waits until the gate is open; leave is to follow.
func (g *gate) enter(ctx context.Context) error {
	for {
		g.mu.Lock()
		open := g.open
		select {
		case <-open:
			g.working++
			g.mu.Unlock()
			return nil
		default:
		}
		g.mu.Unlock()
		select {
		case <-open:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.working--
	if g.working == 0 && g.idle != nil {
		close(g.idle)
		g.idle = nil
	}
}

func (g *gate) set(open bool) (idle <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	quiet := make(chan struct{})
	if open {
		close(g.open)
		return nil
	}
	g.open = make(chan struct{})
	if g.working == 0 {
		close(quiet)
	} else {
		g.idle = quiet
	}
	return quiet
}

func newFleet(b *Bench) (*fleet, error) {
	f := &fleet{b: b, gate: newGate()}
	for i := range b.cfg.Devices {
		d := &device{id: fmt.Sprintf("dev-%02d", i), home: i % b.cfg.Nodes}
		if i/b.cfg.Nodes%2 == 0 {
			c, err := newCoAP(b.host, d.id, uint16(b.cfg.Seed)+uint16(i)*2048)
			if err != nil {
				return nil, err
			}
			d.c = c
		} else {
			d.c = &mqttClient{device: d.id}
		}
		f.devices = append(f.devices, d)
	}
	return f, nil
}

// run plays the load until ctx ends.
func (f *fleet) run(ctx context.Context) {
	var wg sync.WaitGroup
	for i, d := range f.devices {
		wg.Go(func() {
			defer d.c.close()
			f.play(ctx, d, rand.New(rand.NewPCG(f.b.cfg.Seed, uint64(i))))
		})
	}
	for i := range f.b.cfg.Readers {
		wg.Go(func() { f.read(ctx, rand.New(rand.NewPCG(f.b.cfg.Seed, uint64(1000+i)))) })
	}
	wg.Wait()
}

// play is a device's life.
func (f *fleet) play(ctx context.Context, d *device, rng *rand.Rand) {
	node := d.home
	for n := int64(1); ; n++ {
		pace := f.b.cfg.Pace/2 + rand.N(f.b.cfg.Pace)
		if pause(ctx, pace) != nil || f.gate.enter(ctx) != nil {
			return
		}
		w := write{at: time.Now().UnixMilli(), value: 2_0000 + n, call: f.b.now()}
		if n%spikeEvery == 10 {
			w.value = 1_000_0000 + n
		}
		d.mu.Lock()
		if last := len(d.mu.writes) - 1; last >= 0 {
			w.at = max(w.at, d.mu.writes[last].at+1)
		}
		d.mu.writes = append(d.mu.writes, w)
		d.mu.Unlock()
		node = f.deliver(ctx, d, &w, node)
		f.gate.leave()
		if rng.IntN(200) == 0 { // a device that roams comes home by and by
			node = d.home
		}
	}
}

// deliver sends a reading until it is acked, and returns the node that did.
func (f *fleet) deliver(ctx context.Context, d *device, w *write, node int) int {
	payload := fmt.Appendf(nil, `[{"bn":"%s:","bt":%d.%03d,"n":"temp","u":"Cel","v":%d.%04d}]`, d.id, w.at/1000, w.at%1000, w.value/10000, w.value%10000)
	for try := 0; ; try++ {
		began := f.b.now()
		err := d.c.attempt(f.b.procs[node], payload, try > 0)
		now := f.b.now()
		d.mu.Lock()
		last := &d.mu.writes[len(d.mu.writes)-1]
		last.tries = try + 1
		if (try > 0 || err != nil) && try < storyMax {
			last.story = append(last.story, fmt.Sprintf("%s %.3f–%.3f s %v", f.b.procs[node].name, began.Seconds(), now.Seconds(), cmp.Or(err, errAcked)))
		}
		if err == nil {
			last.done, d.mu.lastErr = now, nil
			d.mu.Unlock()
			return node
		}
		d.mu.lastErr = fmt.Errorf("%s: %w", f.b.procs[node].name, err)
		if !errors.Is(err, errRefused) && !errors.Is(err, errNoReply) && len(d.mu.strange) < 100 {
			d.mu.strange = append(d.mu.strange, d.mu.lastErr.Error())
		}
		d.mu.Unlock()
		node = (node + 1) % f.b.cfg.Nodes
		if pause(ctx, hopWait) != nil {
			return node
		}
	}
}

// read asks for twins, any device's of any node, at level leader.
func (f *fleet) read(ctx context.Context, rng *rand.Rand) {
	for pause(ctx, 10*time.Millisecond+rand.N(40*time.Millisecond)) == nil && f.gate.enter(ctx) == nil {
		r := reading{device: rng.IntN(len(f.devices)), node: rng.IntN(f.b.cfg.Nodes), call: f.b.now()}
		v, err := f.b.twin(ctx, f.b.procs[r.node], f.devices[r.device].id)
		if err == nil {
			r.value, r.done = v, f.b.now()
			f.reads.Lock()
			f.reads.ops = append(f.reads.ops, r)
			f.reads.Unlock()
		}
		f.gate.leave()
	}
}

// late names the devices of which nothing was acked since, with the error of their last attempt.
func (f *fleet) late(since time.Duration) map[string]error {
	late := map[string]error{}
	for _, d := range f.devices {
		d.mu.Lock()
		i := len(d.mu.writes) - 1
		if i > 0 && d.mu.writes[i].done == 0 {
			i--
		}
		if i < 0 || d.mu.writes[i].done < since || d.mu.writes[i].done == 0 {
			late[d.id] = d.mu.lastErr
		}
		d.mu.Unlock()
	}
	return late
}

// awaitAcks waits until every device had a reading acked since the moment, and names those that had not.
func (f *fleet) awaitAcks(ctx context.Context, since, max time.Duration) error {
	deadline := f.b.now() + max
	for {
		late := f.late(since)
		if len(late) == 0 {
			return nil
		}
		if f.b.now() > deadline {
			return fmt.Errorf("%d devices could get nothing in within %v: %v", len(late), max, late)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// halt lets everybody finish and waits for it.
func (f *fleet) halt(ctx context.Context, max time.Duration) error {
	idle := f.gate.set(false)
	select {
	case <-idle:
		return nil
	case <-time.After(max):
		return fmt.Errorf("load does not come to rest within %v of the end of a fault", max)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// gaps returns each device's longest span between two acks in the window, sorted.
func (f *fleet) gaps(from, to time.Duration) (gaps []time.Duration) {
	for _, d := range f.devices {
		d.mu.Lock()
		longest, last := time.Duration(0), from
		for _, w := range d.mu.writes {
			if w.done == 0 || w.done < from {
				continue
			}
			longest, last = max(longest, min(w.done, to)-last), w.done
			if w.done > to {
				break
			}
		}
		longest = max(longest, to-last)
		d.mu.Unlock()
		gaps = append(gaps, longest)
	}
	slices.Sort(gaps)
	return gaps
}
