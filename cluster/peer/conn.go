package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin"
)

const (
	deadTicks   = 12  // ticks in DeadAfter
	pingTicks   = 3   // between pings
	stallTicks  = 60  // ticks after which a write that writes nothing has failed: 5 × DeadAfter
	staleTicks  = 360 // ticks after which a body that doesn't move is given up: 30 × DeadAfter
	turnBytes   = 256 << 10
	refusedMax  = 4096 // refused calls whose answers have not been written: more of them are an attack
	bufferBytes = 64 << 10
)

var errClosing = fmt.Errorf("%w: this node's links are closing", dunlin.ErrUnavailable)

// conn is a connection after both sides' Hello.
type conn struct {
	l       *Links
	p       *peer
	tls     *tls.Conn
	wire    *wire
	them    *hello
	kind    kind // the dialling side's
	dialled bool // by this side
	version uint32
	since   time.Duration
	seq     uint64      // of our Use, if we decide
	used    atomic.Bool // this is the link
	rtt     atomic.Int64
	age     atomic.Uint32 // ticks

	done  chan struct{} // closed when it has failed
	cause error         // why; set before done is closed
	once  sync.Once
	wake  chan struct{} // size 1: a set flag for the writer

	watch struct { // the ticking goroutine's
		received, sent uint64
		idle, stall    int
		pinged         uint64 // sent, a tick after a ping was last thought of
		quiet          int    // without a call, if this is for one call
	}
	pinged atomic.Uint64 // token of the ping under way, 0: none

	out struct { // on its way out
		sync.Mutex
		closed  bool
		ctl     []byte
		raft    raftq
		bulk    bulkq
		bytes   int // of Raft messages, with what the writer has taken
		refused int // answers to calls that were not served
	}
	mu struct { // calls both ways; before out
		sync.Mutex
		closed bool
		last   uint32
		calls  map[uint32]*call
		served map[uint32]*serving
		flows  *flows
	}
}

func newConn(l *Links, t *tls.Conn, w *wire) *conn {
	c := &conn{l: l, tls: t, wire: w, since: l.cfg.now(), done: make(chan struct{}), wake: make(chan struct{}, 1)}
	c.out.raft.open = -1
	c.mu.calls, c.mu.served = map[uint32]*call{}, map[uint32]*serving{}
	c.mu.flows = newFlows(l.cfg.BulkBytesMax, l.cfg.WindowBytes)
	return c
}

// run reads and writes until the connection fails or ctx ends, and returns why it failed.
func (c *conn) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(ctx, func() { c.fail(errClosing) })
	defer stop()
	c.wire.gather()
	var writer sync.WaitGroup
	writer.Go(func() {
		if err := c.write(); err != nil {
			c.fail(fmt.Errorf("%w: write: %w", dunlin.ErrUnavailable, err))
		}
	})
	c.fail(c.read(ctx))
	writer.Wait()
	cancel(c.cause)
	c.abandon()
	return c.cause
}

// fail ends the connection, with the first reason given.
func (c *conn) fail(err error) {
	c.once.Do(func() {
		c.cause = err
		close(c.done)
		c.wire.Close() // not TLS's close, which may wait for the other side
	})
}

// abandon gives up what waits on a connection that has failed.
func (c *conn) abandon() {
	c.mu.Lock()
	c.mu.closed = true
	for id, k := range c.mu.calls {
		k.finish(nil, fmt.Errorf("%s to node %s: connection lost: %w", k.method, c.them.Node, unavailable(c.cause)))
		delete(c.mu.calls, id)
	}
	for _, s := range c.mu.served {
		if !s.running && !s.answered {
			s.release()
		}
	}
	c.mu.Unlock()
	c.out.Lock()
	defer c.out.Unlock()
	c.out.closed = true
	c.p.dropped.Add(uint64(c.out.raft.count))
	c.out.raft.reset()
	c.out.bytes = 0
	for key := range c.out.bulk.all {
		c.out.bulk.remove(key)
	}
}

func unavailable(err error) error {
	if errors.Is(err, dunlin.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", dunlin.ErrUnavailable, err)
}

func (c *conn) wakeWriter() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// control queues frames that go before everything else.
func (c *conn) control(add func(b []byte) []byte) {
	c.out.Lock()
	if !c.out.closed {
		c.out.ctl = add(c.out.ctl)
	}
	c.out.Unlock()
	c.wakeWriter()
}

// queue takes those of the batch that go to this peer.
func queue[M message](c *conn, batch []M) {
	node, limit := uint64(c.p.id), c.l.cfg.QueueBytesMax
	var count, bytes, dropped uint64
	c.out.Lock()
	for i := range batch {
		m := Message(batch[i])
		if m.To != node {
			continue
		}
		size := messageHead + len(m.Data)
		if c.out.closed || c.out.bytes+size > limit || len(m.Data) > c.l.cfg.MessageBytesMax {
			dropped++
			continue
		}
		c.out.raft.add(uint16(m.Shard), m.Data)
		c.out.bytes += size
		count, bytes = count+1, bytes+uint64(len(m.Data))
	}
	c.out.Unlock()
	if count > 0 {
		c.wakeWriter()
	}
	c.p.sentMessages.Add(count)
	c.p.sentBytes.Add(bytes)
	c.p.dropped.Add(dropped)
}

// job is what the writer writes next. Its buffers go back and forth between writer and queue.
type job struct {
	ctl    []byte
	raft   raftq
	at     int // written of raft.buf
	ref    int // written of raft.refs
	head   []byte
	bulk   []piece
	pieces int // bytes
}

type piece struct {
	head int // its head ends there in job.head
	body []byte
}

// take waits for something to write.
func (c *conn) take(j *job) bool {
	for {
		c.out.Lock()
		j.ctl, c.out.ctl = c.out.ctl, j.ctl[:0]
		if j.raft.empty() {
			j.raft, c.out.raft = c.out.raft, j.raft
			j.at, j.ref = 0, 0
		}
		j.head, j.bulk, j.pieces = j.head[:0], j.bulk[:0], 0
		for j.pieces < chunkMax {
			head, body, ok := c.out.bulk.next(j.head)
			if !ok {
				break
			}
			j.pieces += len(head) - len(j.head) + len(body)
			j.head = head
			j.bulk = append(j.bulk, piece{len(head), body})
		}
		c.out.Unlock()
		if len(j.ctl) > 0 || !j.raft.empty() || len(j.bulk) > 0 {
			return true
		}
		select {
		case <-c.wake:
		case <-c.done:
			return false
		}
	}
}

func (c *conn) write() error {
	j := &job{raft: raftq{open: -1}}
	for c.take(j) {
		err := c.put(j)
		if err == nil {
			err = c.wire.flush()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *conn) put(j *job) error {
	if len(j.ctl) > 0 {
		if _, err := c.tls.Write(j.ctl); err != nil {
			return err
		}
	}
	if err := c.putRaft(j); err != nil {
		return err
	}
	from := 0
	for _, p := range j.bulk {
		if _, err := c.tls.Write(j.head[from:p.head]); err != nil {
			return err
		}
		from = p.head
		if len(p.body) == 0 {
			continue
		}
		if _, err := c.tls.Write(p.body); err != nil {
			return err
		}
	}
	clear(j.bulk)
	return nil
}

// putRaft writes Raft messages, about turnBytes of them: bodies and pings get their turn, too.
func (c *conn) putRaft(j *job) error {
	if j.raft.empty() {
		return nil
	}
	for n := 0; n < turnBytes; {
		end := len(j.raft.buf)
		var data []byte
		if j.ref < len(j.raft.refs) {
			end, data = j.raft.refs[j.ref].at, j.raft.refs[j.ref].data
			j.ref++
		} else if j.at == end {
			break
		}
		for _, b := range [][]byte{j.raft.buf[j.at:end], data} {
			if len(b) == 0 {
				continue
			}
			if _, err := c.tls.Write(b); err != nil {
				return err
			}
			n += len(b)
		}
		j.at = end
	}
	if j.at < len(j.raft.buf) || j.ref < len(j.raft.refs) {
		return nil
	}
	c.out.Lock()
	c.out.bytes -= j.raft.bytes
	c.out.Unlock()
	j.raft.reset()
	return nil
}

// tick is called deadTicks times in DeadAfter. It counts ticks instead of asking the time: while this process is stopped it
// makes none, and holds nothing against the other side.
func (c *conn) tick() {
	w := &c.watch
	age := c.age.Add(1)
	if n := c.wire.received.Load(); n != w.received {
		w.received, w.idle = n, 0
	} else if w.idle++; w.idle > deadTicks {
		c.fail(fmt.Errorf("%w: nothing was heard for %s", dunlin.ErrUnavailable, c.l.cfg.DeadAfter))
		return
	}
	if n := c.wire.sent.Load(); n != w.sent || !c.wire.writing.Load() {
		w.sent, w.stall = n, 0
	} else if w.stall++; w.stall > stallTicks {
		c.fail(fmt.Errorf("%w: it takes nothing for %s", dunlin.ErrUnavailable, c.l.cfg.DeadAfter*stallTicks/deadTicks))
		return
	}
	switch {
	case age%pingTicks == 1: // a ping a tick ago is written by now, and does not count
		w.pinged = c.wire.sent.Load()
	case age%deadTicks == 0 || age%pingTicks == 0 && w.pinged == c.wire.sent.Load():
		c.ping() // otherwise what was written since has shown life as well
	}
	if c.kind == kindLink && !c.used.Load() && age > stallTicks {
		c.fail(fmt.Errorf("%w: the other side never used the connection", dunlin.ErrUnavailable))
	}
	c.tickCalls()
	if c.kind == kindCall && !c.dialled {
		c.tickGuest()
	}
}

// tickGuest ends a connection for one call that is not used for one.
func (c *conn) tickGuest() {
	c.mu.Lock()
	busy := len(c.mu.served) > 0
	c.mu.Unlock()
	c.out.Lock()
	busy = busy || len(c.out.bulk.all) > 0
	c.out.Unlock()
	if c.watch.quiet++; busy {
		c.watch.quiet = 0
	}
	if c.watch.quiet > stallTicks {
		c.fail(fmt.Errorf("%w: no call came", dunlin.ErrUnavailable))
	}
}

// ping always sends a byte that shows life; the round trip is measured one ping at a time.
func (c *conn) ping() {
	token := uint64(c.l.cfg.now().Microseconds()) + 1
	if !c.pinged.CompareAndSwap(0, token) {
		token = 0
	}
	c.control(func(b []byte) []byte {
		if len(b) > bufferBytes { // the writer is stuck, and what is there will show life
			return b
		}
		return appendWord(b, framePing, token)
	})
}

func (c *conn) pong(token uint64) {
	if token == 0 || !c.pinged.CompareAndSwap(token, 0) {
		return
	}
	took := max(c.l.cfg.now()-time.Duration(token-1)*time.Microsecond, time.Microsecond)
	if old := time.Duration(c.rtt.Load()); old != 0 {
		took = old + (took-old)/8
	}
	c.rtt.Store(int64(took))
}

// read takes frames until the connection fails.
func (c *conn) read(ctx context.Context) error {
	buf := make([]byte, bufferBytes)
	from, to := 0, 0
	for {
		for to-from >= frameHead {
			n := int(buf[from]) | int(buf[from+1])<<8 | int(buf[from+2])<<16
			if limit := bounds(buf[from+3], c.l.cfg.MessageBytesMax); n > limit {
				return c.broke(broken("frame of type %d with %d bytes, want at most %d", buf[from+3], n, limit))
			}
			if to-from < frameHead+n {
				break
			}
			if err := c.frame(ctx, buf[from+3], buf[from+frameHead:from+frameHead+n]); err != nil {
				return c.broke(err)
			}
			from += frameHead + n
		}
		buf, from, to = room(buf, from, to)
		n, err := c.tls.Read(buf[to:])
		if to += n; err != nil {
			return fmt.Errorf("%w: read: %w", dunlin.ErrUnavailable, explain(err))
		}
	}
}

// room makes place for more of a frame. The buffer grows with what has come, not with what a head promises, and shrinks
// again behind a very long one.
func room(buf []byte, from, to int) (_ []byte, newFrom, newTo int) {
	switch held := to - from; {
	case held <= bufferBytes/2 && len(buf) > keepMax:
		small := make([]byte, bufferBytes)
		return small, 0, copy(small, buf[from:to])
	case from > 0 && len(buf)-to < len(buf)/4:
		return buf, 0, copy(buf, buf[from:to])
	case to == len(buf):
		big := make([]byte, 2*len(buf))
		return big, 0, copy(big, buf[from:to])
	}
	return buf, from, to
}

// broke tells the other side what is wrong with its bytes. Meanwhile the rest of them is thrown away: closing on unread bytes
// would take the text away again.
func (c *conn) broke(err error) error {
	var r *Refusal
	if !errors.As(err, &r) || r.Theirs || r.Reason != RefusedBroken {
		return err
	}
	c.l.m.refused(r.Reason)
	c.refuse(r)
	_, _ = io.Copy(io.Discard, c.tls)
	return err
}

// refuse says why the connection ends, and ends it a moment later.
func (c *conn) refuse(r *Refusal) {
	c.control(func(b []byte) []byte { return appendRefuse(b, r) })
	time.AfterFunc(c.l.cfg.DeadAfter/4, func() { c.fail(r) })
}

// frame acts on a frame. b is only its own until it returns.
func (c *conn) frame(ctx context.Context, typ byte, b []byte) error {
	switch typ {
	case frameRaft:
		return c.raft(b)
	case framePing, framePong, frameUse:
		v, err := parseWord(b)
		if err != nil {
			return err
		}
		return c.word(typ, v)
	case frameCall:
		q, err := parseRequest(b)
		if err != nil {
			return err
		}
		return c.onCall(ctx, q)
	case frameReply:
		p, err := parseReply(b)
		if err != nil {
			return err
		}
		return c.onReply(p)
	case frameCallPiece, frameReplyPiece:
		id, data, err := parsePiece(b)
		if err != nil {
			return err
		}
		return c.onPiece(ctx, flowKey{id, typ == frameReplyPiece}, data)
	case frameCallCredit, frameReplyCredit:
		id, n, err := parseCredit(b)
		if err != nil {
			return err
		}
		return c.onCredit(flowKey{id, typ == frameReplyCredit}, n)
	case frameCancel:
		id, err := parseCancel(b)
		if err != nil {
			return err
		}
		c.onCancel(id)
		return nil
	case frameRefuse:
		r, err := parseRefuse(b)
		if err != nil {
			return err
		}
		return r
	}
	return broken("frame of type %d", typ)
}

func (c *conn) word(typ byte, v uint64) error {
	switch typ {
	case framePing:
		c.control(func(b []byte) []byte {
			if len(b) > bufferBytes { // it pings and takes no answer
				return b
			}
			return appendWord(b, framePong, v)
		})
	case framePong:
		c.pong(v)
	case frameUse:
		if c.kind != kindLink {
			return broken("Use on a connection for one call")
		}
		return c.p.use(c, v)
	}
	return nil
}

func (c *conn) raft(b []byte) error {
	if c.kind != kindLink {
		return broken("Raft messages on a connection for one call")
	}
	messages, bytes := 0, 0
	for len(b) > 0 {
		sh, data, rest, err := nextMessage(b)
		if err != nil {
			return err
		}
		c.l.cfg.OnMessages(c.them.Node, sh, data)
		b, messages, bytes = rest, messages+1, bytes+len(data)
	}
	c.p.gotMessages.Add(uint64(messages))
	c.p.gotBytes.Add(uint64(bytes))
	return nil
}
