package mqtt

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/dunlin-iot/dunlin"
)

// flusher writes the answers of its connections. A commit tells many uplinks of many connections from one goroutine; all
// that does is to put connections on the flusher's list, and what a connection is owed by then leaves in one write.
type flusher struct {
	g    *Gateway
	head atomic.Pointer[conn] // connections with something to do, newest first
	poke chan struct{}        // cap 1: the list isn't empty
}

// push puts c on the list; c.queued says that it is the caller's to do so.
func (f *flusher) push(c *conn) {
	for {
		head := f.head.Load()
		c.next = head
		if f.head.CompareAndSwap(head, c) {
			if head == nil {
				select {
				case f.poke <- struct{}{}:
				default:
				}
			}
			return
		}
	}
}

func (f *flusher) run(ctx context.Context) {
	t := f.g.newTurn(0)
	for {
		select {
		case <-f.poke:
			f.flush(t)
		case <-ctx.Done():
			return
		}
	}
}

// flush visits everyone on the list, who came first first.
func (f *flusher) flush(t *turn) {
	for list := f.head.Swap(nil); list != nil; list = f.head.Swap(nil) {
		var fifo *conn
		for c := list; c != nil; {
			next := c.next
			c.next, fifo, c = fifo, c, next
		}
		t.now = f.g.now()
		for c := fifo; c != nil; {
			next := c.next
			c.next = nil
			c.queued.Store(false) // before the visit: a Done that the visit doesn't see queues c again
			c.settle(t)
			c = next
		}
		t.ingest()
	}
}

func (g *Gateway) newTurn(now dunlin.Time) *turn { return &turn{g: g, now: now} }

// ingest hands over what the turn collected. No lock may be held: the Ingestor may answer before it returns.
func (t *turn) ingest() {
	t.counters.flush(&t.g.stats)
	if t.first == nil {
		return
	}
	first := t.first
	t.first, t.last, t.uplinks = nil, nil, 0
	if first = withoutBalked(first); first != nil {
		t.g.deps.Ingestor.Ingest(first)
	}
}

// errBehind is for what was not even offered.
var errBehind = fmt.Errorf("%w: an earlier PUBLISH has to be offered again first", dunlin.ErrOverloaded)

// withoutBalked takes out of a chain what must wait: while one of a connection's PUBLISHes is refused for now, those behind it would
// pass it. They are all offered again together (machine.hold).
func withoutBalked(first *dunlin.Uplink) *dunlin.Uplink {
	link := &first
	for u := first; u != nil; {
		next := u.Next
		if s, ok := u.Waiter.(*slot); ok && s.c.balked.Load() {
			*link, u.Next = next, nil
			s.Done(u, dunlin.Receipt{Err: errBehind, RetryAfterSeconds: 1})
		} else {
			link = &u.Next
		}
		u = next
	}
	return first
}
