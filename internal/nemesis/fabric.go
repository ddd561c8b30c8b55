package nemesis

import (
	"io"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// weather is what packets of one direction between two ports go through.
type weather struct {
	loss  float64       // share that is lost, 1 for all
	delay time.Duration // of every packet; order is kept
}

// delayedMax bounds the packets of one direction that are on their way; more are lost, as in a router.
const delayedMax = 4096

// fabric is a switch of IPv4 packets between ports. Packets to nobody are lost.
type fabric struct {
	ports   []fabricPort
	lanes   [][]*lane // from, to
	wg      sync.WaitGroup
	dropped atomic.Int64
	done    chan struct{}
}

type fabricPort struct {
	addr netip.Addr
	dev  io.ReadWriteCloser
}

// lane is one direction between two ports.
type lane struct {
	mu struct {
		sync.Mutex
		weather
		rng *rand.Rand
	}
	queue chan parcel
}

type parcel struct {
	due  time.Time
	data []byte
}

func newFabric(seed uint64, ports []fabricPort) *fabric {
	f := &fabric{ports: ports, done: make(chan struct{}), lanes: make([][]*lane, len(ports))}
	for i := range ports {
		f.lanes[i] = make([]*lane, len(ports))
		for j := range ports {
			l := &lane{queue: make(chan parcel, delayedMax)}
			l.mu.rng = rand.New(rand.NewPCG(seed, uint64(i)<<32|uint64(j)))
			f.lanes[i][j] = l
			f.wg.Go(func() { f.carry(l, f.ports[j].dev) })
		}
	}
	for i := range ports {
		f.wg.Go(func() { f.read(i) })
	}
	return f
}

// set changes the weather from one port to another.
func (f *fabric) set(from, to int, w weather) {
	l := f.lanes[from][to]
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.weather = w
}

// clear is fair weather everywhere.
func (f *fabric) clear() {
	for i := range f.ports {
		for j := range f.ports {
			f.set(i, j, weather{})
		}
	}
}

// close closes the ports and waits for the packets' end.
func (f *fabric) close() {
	close(f.done)
	for _, p := range f.ports {
		_ = p.dev.Close() // a reader that waits gets an error
	}
	f.wg.Wait()
}

// read takes packets of a port and passes them on.
func (f *fabric) read(from int) {
	buf := make([]byte, 65536)
	for {
		n, err := f.ports[from].dev.Read(buf)
		if err != nil {
			return
		}
		if to, ok := f.target(buf[:n]); ok {
			f.pass(from, to, buf[:n])
		}
	}
}

// target is the port that an IPv4 packet is for.
func (f *fabric) target(pkt []byte) (int, bool) {
	if len(pkt) < 20 || pkt[0]>>4 != 4 {
		return 0, false
	}
	dst := netip.AddrFrom4([4]byte(pkt[16:20]))
	for i := range f.ports {
		if f.ports[i].addr == dst {
			return i, true
		}
	}
	return 0, false
}

func (f *fabric) pass(from, to int, pkt []byte) {
	l := f.lanes[from][to]
	l.mu.Lock()
	w := l.mu.weather
	lost := w.loss > 0 && l.mu.rng.Float64() < w.loss
	l.mu.Unlock()
	switch {
	case lost:
		f.dropped.Add(1)
	case w.delay == 0:
		_, _ = f.ports[to].dev.Write(pkt) // a full or closed port loses it
	default:
		select {
		case l.queue <- parcel{time.Now().Add(w.delay), append([]byte(nil), pkt...)}:
		default:
			f.dropped.Add(1)
		}
	}
}

// carry delivers what is delayed, in order.
func (f *fabric) carry(l *lane, dev io.Writer) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case p := <-l.queue:
			timer.Reset(time.Until(p.due))
			select {
			case <-timer.C:
				_, _ = dev.Write(p.data) // as in pass
			case <-f.done:
				return
			}
		case <-f.done:
			return
		}
	}
}
