package coap

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/coap/endpoint"
)

const (
	asleep uint32 = iota // the reader waits for datagrams, or is about to
	awake
)

const never = time.Duration(1<<63 - 1)

// outputMax bounds the datagrams that timers add to one turn of the loop: a burst of retransmissions must not hold up
// fresh requests.
const outputMax = 256

// reader is a socket, the message layer behind it and the requests in work. All but the fields under "shared" belong to
// the goroutine of run.
type reader struct {
	g    *Gateway
	sock *socket
	m    *endpoint.Machine

	in       inbound
	ans      answer
	first    *dunlin.Uplink // the chain that this turn of the loop hands over
	last     *dunlin.Uplink
	received dunlin.Time // of this turn of the loop
	stamped  dunlin.Time // receipt of the last uplink: two of one turn differ, or of two readings without a time one is lost
	now      time.Duration
	armed    time.Duration // the socket's deadline; never if there is none
	moved    bool          // somebody else may have changed the deadline
	calls    []*call       // free ones
	idleJobs []*job
	sessions []session // by peer slot
	logins   logins
	lost     uint64
	again    bool // there is something to do although no datagram came
	draining bool // closing was noticed

	// shared
	state   atomic.Uint32
	done    atomic.Pointer[call] // answered ones, newest first
	codes   [256]atomic.Uint64   // answers by code
	publish struct {
		sync.Mutex
		stats endpoint.Stats
		lost  uint64
	}
}

func newReader(g *Gateway, s *socket, readers int, seed uint64) *reader {
	share := func(n int) int { return (n + readers - 1) / readers }
	cfg := endpoint.Config{PeersMax: share(g.cfg.PeersMax), ExchangesMax: share(g.cfg.ExchangesMax), Seed: seed,
		PeerExchangesMax: g.cfg.PeerExchangesMax, SeenMax: share(g.cfg.SeenMax)}
	rd := &reader{g: g, sock: s, m: endpoint.New(cfg), armed: never, logins: newLogins(share(g.cfg.LoginsMax))}
	rd.state.Store(awake)
	return rd
}

// run serves the socket until the gateway has drained or the socket fails. The socket calls turn with what it has received,
// and sleep and woke around its waits. A failure ends the whole gateway: the kernel would go on giving this socket its
// share of the peers.
func (rd *reader) run() {
	if err := rd.sock.serve(rd); err != nil {
		rd.g.log.Error("coap socket failed", "error", err)
		rd.g.close()
	}
}

// turn works off the n datagrams that the socket has received: it hands their uplinks over, answers what was done, does
// what is due, and sends all that came of it. True means that this was the last turn.
func (rd *reader) turn(n int) (end bool) {
	rd.again = false
	rd.now = rd.g.now()
	if n > 0 {
		rd.received = rd.g.cfg.Clock()
	}
	for i := range n {
		var from endpoint.Addr
		b, size := rd.sock.datagram(i, &from)
		if req := rd.m.Receive(rd.now, &from, b, size); req != nil {
			rd.handle(req)
		}
	}
	rd.handOver()
	rd.drain()
	rd.m.Tick(rd.now, outputMax)
	rd.send()
	return rd.g.closing.Load() && (rd.m.Pending() == 0 || int64(rd.now) >= rd.g.drained.Load())
}

// sleep is called before the socket waits; false means that there is something to do first (again is set).
func (rd *reader) sleep() bool {
	rd.arm()
	rd.state.Store(asleep)
	// Whoever pushed or closed before this line saw us awake and did not wake us.
	closing := rd.g.closing.Load()
	if rd.done.Load() == nil && closing == rd.draining {
		return true
	}
	rd.draining, rd.again = closing, true // the next sleep arms the deadline of draining
	rd.woke()
	return false
}

// woke is called when the socket's wait is over.
func (rd *reader) woke() {
	if rd.state.Swap(awake) == awake {
		rd.moved = true // wake was here, and moves the deadline
	}
}

// interrupted is called when the wait ended by its deadline: an own one, or that of a wake that may have begun long ago.
func (rd *reader) interrupted() {
	rd.woke()
	rd.moved, rd.again = true, true
}

// wake ends the socket's wait. Any goroutine may call it.
func (rd *reader) wake() {
	if rd.state.CompareAndSwap(asleep, awake) {
		rd.sock.interrupt()
	}
}

// arm sets the socket's deadline to what the machine wants next. A deadline that is too early is left: it costs one idle
// turn, whereas the next ACK to be due changes with every request.
func (rd *reader) arm() {
	next, ok := rd.m.Next()
	if !ok {
		next = never
	}
	if rd.g.closing.Load() {
		next = min(next, time.Duration(rd.g.drained.Load()))
	}
	if !rd.moved && next >= rd.armed {
		return
	}
	rd.moved, rd.armed = false, next
	if next == never {
		rd.sock.deadline(time.Time{})
		return
	}
	rd.sock.deadline(rd.g.start.Add(next))
}

// handOver gives the ingestor the uplinks of this turn.
func (rd *reader) handOver() {
	if first := rd.first; first != nil {
		rd.first, rd.last = nil, nil
		rd.g.deps.Ingestor.Ingest(first)
	}
}

// drain answers the calls that are done, in the order in which they were.
func (rd *reader) drain() {
	var list *call
	for c := rd.done.Swap(nil); c != nil; {
		c.next, list, c = list, c, c.next
	}
	for c := list; c != nil; {
		next := c.next // the call may be in use again afterwards
		c.next = nil
		rd.finished(c)
		c = next
	}
	rd.handOver() // logins that succeeded
}

// push adds a call to the done ones. Any goroutine may call it.
func (rd *reader) push(c *call) {
	for {
		head := rd.done.Load()
		c.next = head
		if rd.done.CompareAndSwap(head, c) {
			break
		}
	}
	rd.wake()
}

// send publishes the counters, so that who has its answer finds itself counted, and writes what there is to send.
func (rd *reader) send() {
	rd.publish.Lock()
	rd.publish.stats, rd.publish.lost = rd.m.Stats(), rd.lost
	rd.publish.Unlock()
	if out := rd.m.Output(); len(out) > 0 {
		rd.lost += uint64(rd.sock.send(out))
		rd.m.Sent()
	}
}
