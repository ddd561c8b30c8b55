package peer

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// call is one of this node's that waits for its answer.
type call struct {
	method string
	done   chan struct{} // closed once body or err is there
	body   []byte
	err    error
}

func (k *call) finish(body []byte, err error) {
	k.body, k.err = body, err
	close(k.done)
}

// serving is another node's call, from its first frame until its answer is written.
type serving struct {
	method     string
	deadlineMS uint32
	total      int // of a body that has room in flows; 0: none
	running    bool
	answered   bool // its answer is in out.bulk
	cancelled  bool
	cancel     context.CancelCauseFunc
	release    func() // its place among the calls of the peer
}

// call asks the other side.
func (c *conn) call(ctx context.Context, method string, body []byte) ([]byte, error) {
	k := &call{method: method, done: make(chan struct{})}
	q := request{total: len(body), method: method, deadlineMS: deadline(ctx)}
	c.mu.Lock()
	switch {
	case c.mu.closed:
		c.mu.Unlock()
		return nil, fmt.Errorf("%s to node %s: %w", method, c.them.Node, unavailable(c.cause))
	case len(c.mu.calls) >= c.l.cfg.CallsOutMax:
		c.mu.Unlock()
		return nil, fmt.Errorf("%s to node %s: %w: %d calls are under way", method, c.them.Node, dunlin.ErrOverloaded, c.l.cfg.CallsOutMax)
	}
	for c.mu.last++; c.mu.calls[c.mu.last] != nil; c.mu.last++ {
	}
	q.id = c.mu.last
	c.mu.calls[q.id] = k
	c.mu.Unlock()
	key := flowKey{id: q.id}
	c.out.Lock()
	if !c.out.closed {
		c.out.bulk.add(&outflow{key: key, head: q.appendHead(nil), body: body})
	}
	c.out.Unlock()
	c.wakeWriter()
	select {
	case <-k.done:
		return k.body, k.err
	case <-ctx.Done():
		c.giveUp(q.id)
		return nil, fmt.Errorf("%s to node %s: %w: %w", method, c.them.Node, dunlin.ErrUnavailable, context.Cause(ctx))
	}
}

// deadline is the time left in ms, at least 1; 0: there is none.
func deadline(ctx context.Context) uint32 {
	at, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	return uint32(min(max(time.Until(at).Milliseconds(), 1), math.MaxUint32))
}

// giveUp forgets a call, here and there.
func (c *conn) giveUp(id uint32) {
	c.mu.Lock()
	delete(c.mu.calls, id)
	c.mu.flows.remove(flowKey{id, true})
	grants := c.mu.flows.pump()
	c.mu.Unlock()
	c.ask(grants)
	c.out.Lock()
	if o := c.out.bulk.all[flowKey{id: id}]; o != nil && o.head != nil { // the other side has never heard of it
		c.out.bulk.remove(o.key)
		c.out.Unlock()
		return
	}
	c.out.bulk.remove(flowKey{id: id})
	c.out.ctl = appendCancel(c.out.ctl, id)
	c.out.Unlock()
	c.wakeWriter()
}

// ask sends credit.
func (c *conn) ask(grants []grant) {
	if len(grants) == 0 {
		return
	}
	c.control(func(b []byte) []byte {
		for _, g := range grants {
			typ := byte(frameCallCredit)
			if g.key.reply {
				typ = frameReplyCredit
			}
			b = appendCredit(b, typ, g.key.id, g.n)
		}
		return b
	})
}

func (c *conn) onCredit(key flowKey, n int) error {
	c.out.Lock()
	ok := c.out.bulk.grant(key, n)
	c.out.Unlock()
	c.wakeWriter()
	if !ok {
		return broken("credit for %d bytes more than there are", n)
	}
	return nil
}

// onReply takes an answer, or the head of one. An answer to a call that was given up is none.
func (c *conn) onReply(p reply) error {
	key := flowKey{p.id, true}
	c.mu.Lock()
	k := c.mu.calls[p.id]
	if k == nil {
		c.mu.Unlock()
		return nil
	}
	var grants []grant
	switch {
	case p.code != 0: // also in the middle of an answer
		c.mu.flows.remove(key)
		grants = c.mu.flows.pump()
		delete(c.mu.calls, p.id)
		k.finish(nil, remoteError(c.them.Node, k.method, p.code, p.body))
	case p.total <= inlineMax:
		delete(c.mu.calls, p.id)
		k.finish(bytes.Clone(p.body), nil)
	case !c.mu.flows.add(key, p.total):
		c.mu.Unlock()
		return broken("two answers to call %d", p.id)
	default:
		grants = c.mu.flows.pump()
	}
	c.mu.Unlock()
	// Whatever of the call is still to be sent, nobody reads any more.
	if p.code != 0 {
		c.out.Lock()
		c.out.bulk.remove(flowKey{id: p.id})
		c.out.Unlock()
	}
	c.ask(grants)
	return nil
}

func (c *conn) onPiece(ctx context.Context, key flowKey, b []byte) error {
	c.mu.Lock()
	body, done, err := c.mu.flows.data(key, b)
	if done && key.reply {
		c.mu.flows.release(len(body)) // it is the caller's
		if k := c.mu.calls[key.id]; k != nil {
			delete(c.mu.calls, key.id)
			k.finish(body, nil)
		}
	}
	grants := c.mu.flows.pump()
	var s *serving
	if done && !key.reply {
		if s = c.mu.served[key.id]; s != nil {
			s.total = len(body)
			c.startLocked(ctx, key.id, s, body)
		} else {
			c.mu.flows.release(len(body))
		}
	}
	c.mu.Unlock()
	c.ask(grants)
	return err
}

// onCall takes a call, or the head of one.
func (c *conn) onCall(ctx context.Context, q request) error {
	if c.kind == kindCall && c.dialled {
		return broken("a call back on a connection for one call")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.Lock()
	answered := c.out.bulk.all[flowKey{q.id, true}] != nil
	c.out.Unlock()
	if c.mu.served[q.id] != nil || answered {
		return broken("two calls number %d", q.id)
	}
	if int(c.p.serving.Add(1)) > c.l.cfg.CallsMax {
		c.p.serving.Add(-1)
		return c.overloadedLocked(q)
	}
	var released atomic.Bool
	s := &serving{method: q.method, deadlineMS: q.deadlineMS, release: func() {
		if !released.Swap(true) {
			c.p.serving.Add(-1)
		}
	}}
	c.mu.served[q.id] = s
	if q.total <= inlineMax {
		c.startLocked(ctx, q.id, s, bytes.Clone(q.body))
		return nil
	}
	c.mu.flows.add(flowKey{id: q.id}, q.total)
	c.ask(c.mu.flows.pump())
	return nil
}

// overloadedLocked answers a call that is one too many. Whoever lets thousands of such answers lie does not mean to read them.
func (c *conn) overloadedLocked(q request) error {
	c.l.m.overloaded.Inc()
	c.out.Lock()
	defer c.out.Unlock()
	if c.out.refused >= refusedMax {
		return broken("%d calls too many", refusedMax)
	}
	c.out.refused++
	c.answerLocked(flowKey{q.id, true}, nil, fmt.Errorf("%w: %d calls of this node are being served", dunlin.ErrOverloaded, c.l.cfg.CallsMax), func() { c.out.refused-- })
	return nil
}

// answerLocked puts an answer on its way. out is locked.
func (c *conn) answerLocked(key flowKey, body []byte, err error, gone func()) {
	p := reply{id: key.id}
	switch {
	case err == nil && len(body) > BodyBytesMax:
		err = fmt.Errorf("%w: answer of %d bytes, want at most %d", dunlin.ErrTooLarge, len(body), BodyBytesMax)
	case err == nil && c.out.bulk.replies > 0 && c.out.bulk.replies+len(body) > c.l.cfg.BulkBytesMax:
		err = fmt.Errorf("%w: %d bytes of answers wait to be fetched", dunlin.ErrOverloaded, c.out.bulk.replies)
	}
	if err != nil {
		text := err.Error()
		body, p.code = []byte(text[:min(len(text), textBytesMax)]), codeOf(err)
	}
	p.total = len(body)
	c.out.bulk.add(&outflow{key: key, head: p.appendHead(nil), body: body, gone: gone})
	c.wakeWriter()
}

// startLocked serves a call whose body is there, in a goroutine. mu is locked.
func (c *conn) startLocked(ctx context.Context, id uint32, s *serving, body []byte) {
	s.running = true
	ctx, s.cancel = context.WithCancelCause(ctx)
	c.l.serving.Go(func() {
		defer s.cancel(nil)
		if s.deadlineMS > 0 {
			limited, cancel := context.WithTimeout(ctx, time.Duration(s.deadlineMS)*time.Millisecond)
			defer cancel()
			ctx = limited
		}
		answer, err := c.l.cfg.Serve(ctx, c.them.Node, s.method, body)
		c.answer(id, s, answer, err)
	})
}

func (c *conn) answer(id uint32, s *serving, body []byte, err error) {
	c.l.m.served(err)
	c.mu.Lock()
	s.running = false
	if s.total > 0 {
		c.mu.flows.release(s.total)
	}
	grants := c.mu.flows.pump()
	if s.cancelled || c.mu.closed {
		delete(c.mu.served, id)
		c.mu.Unlock()
		s.release()
		c.ask(grants)
		return
	}
	s.answered = true
	delete(c.mu.served, id)
	c.out.Lock()
	if c.out.closed {
		s.release()
	} else {
		c.answerLocked(flowKey{id, true}, body, err, s.release)
	}
	c.out.Unlock()
	c.mu.Unlock()
	c.ask(grants)
}

// onCancel is told that nobody waits for a call's answer any more.
func (c *conn) onCancel(id uint32) {
	c.mu.Lock()
	if s := c.mu.served[id]; s != nil {
		s.cancelled = true
		if s.running {
			s.cancel(context.Canceled)
		} else {
			c.mu.flows.remove(flowKey{id: id})
			delete(c.mu.served, id)
			s.release()
		}
	}
	grants := c.mu.flows.pump()
	c.mu.Unlock()
	c.ask(grants)
	c.out.Lock()
	c.out.bulk.remove(flowKey{id, true})
	c.out.Unlock()
}

// tickCalls gives up bodies that don't move.
func (c *conn) tickCalls() {
	c.mu.Lock()
	stale := c.mu.flows.tick(staleTicks)
	for _, key := range stale {
		c.mu.flows.remove(key)
		err := fmt.Errorf("%w: nothing more came of a body for %s", dunlin.ErrUnavailable, c.l.cfg.DeadAfter*staleTicks/deadTicks)
		if k := c.mu.calls[key.id]; key.reply && k != nil {
			delete(c.mu.calls, key.id)
			k.finish(nil, fmt.Errorf("%s at node %s: %w", k.method, c.them.Node, err))
		}
		if s := c.mu.served[key.id]; !key.reply && s != nil {
			delete(c.mu.served, key.id)
			c.out.Lock()
			c.answerLocked(flowKey{key.id, true}, nil, err, s.release)
			c.out.Unlock()
		}
	}
	grants := c.mu.flows.pump()
	c.mu.Unlock()
	c.ask(grants)
	c.out.Lock()
	defer c.out.Unlock()
	for key, o := range c.out.bulk.all {
		if o.age++; key.reply && o.head == nil && o.age > staleTicks {
			gone := o.gone
			o.gone = nil
			c.out.bulk.remove(key)
			c.answerLocked(key, nil, fmt.Errorf("%w: the answer was not fetched for %s", dunlin.ErrUnavailable, c.l.cfg.DeadAfter*staleTicks/deadTicks), gone)
		}
	}
}
