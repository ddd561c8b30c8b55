package sessions

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/dunlin-iot/dunlin"
)

// lane is how changes of one shard's sessions get into its log: one entry at a time, with all that came meanwhile.
type lane struct {
	s     *Service
	shard dunlin.ShardID

	mu struct {
		sync.Mutex
		queue   []*change
		running bool
		holds   map[string]hold // of sessions without a row, while this node owns the shard
	}
	swept    string      // the key behind which the next sweep begins; the sweep's
	verified dunlin.Time // when holders were last asked; likewise
	verify   bool
}

// change is a request that waits for its answer.
type change struct {
	q    *request
	key  string // of its row
	done chan outcome
}

type outcome struct {
	reply reply
	err   error
}

// How much goes into one entry.
const (
	batchMax      = 256
	batchBytesMax = 1 << 20
)

var errClosing = fmt.Errorf("%w: the node is closing", dunlin.ErrUnavailable)

// do has a request decided here, if this node owns the shard.
func (l *lane) do(ctx context.Context, q *request) (reply, error) {
	c := &change{q: q, key: q.key.String(), done: make(chan outcome, 1)}
	if ok, err := l.enqueue(ctx, c); !ok {
		return reply{status: statusFull}, err
	}
	select {
	case o := <-c.done:
		return o.reply, o.err
	case <-ctx.Done():
		return reply{}, fmt.Errorf("session %s: %w: %w", c.key, dunlin.ErrUnavailable, context.Cause(ctx))
	}
}

// enqueue has c decided; false without an error: too many wait.
func (l *lane) enqueue(ctx context.Context, c *change) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.mu.queue) >= l.s.cfg.QueueMax {
		return false, nil
	}
	if !l.mu.running {
		base := context.WithoutCancel(ctx) // the entry is not one change's alone
		if !l.s.spawn(func() { l.run(base) }) {
			return false, errClosing
		}
		l.mu.running = true
	}
	l.mu.queue = append(l.mu.queue, c)
	return true, nil
}

// run works the queue off.
func (l *lane) run(base context.Context) {
	for {
		batch := l.take()
		if batch == nil {
			return
		}
		ctx, cancel := context.WithTimeout(base, l.s.cfg.UpdateMax)
		l.commit(ctx, batch)
		cancel()
	}
}

func (l *lane) take() []*change {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, size := 0, 0
	for n < len(l.mu.queue) && n < batchMax && size < batchBytesMax {
		size += l.mu.queue[n].q.bytes()
		n++
	}
	if n == 0 {
		l.mu.queue, l.mu.running = nil, false
		return nil
	}
	batch := l.mu.queue[:n:n]
	l.mu.queue = l.mu.queue[n:]
	return batch
}

// decision is what a batch makes of its sessions. The shard's actor fills it; if that comes too late, nobody reads it.
type decision struct {
	states  map[string]state
	keys    []string // of states, in order
	was     map[string]bool
	replies []reply
}

// commit decides a batch and answers it once the entry is committed.
func (l *lane) commit(ctx context.Context, batch []*change) {
	d := &decision{}
	start := l.s.cfg.Clock()
	err := l.s.deps.Updates.Update(ctx, l.shard, nil, func(at dunlin.Time, _ *dunlin.DeviceState) ([]dunlin.Put, error) {
		return l.decide(d, batch, at)
	})
	if err != nil {
		if errors.Is(err, dunlin.ErrNotOwner) {
			l.forget()
		} else if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", dunlin.ErrUnavailable, err)
		}
		for _, c := range batch {
			c.done <- outcome{err: fmt.Errorf("session %s: %w", c.key, err)}
		}
		return
	}
	l.s.stats.entry(len(batch), l.s.cfg.Clock().Sub(start))
	l.remember(d)
	for i, c := range batch {
		c.done <- outcome{reply: d.replies[i]}
	}
	now := l.s.cfg.Clock()
	for _, k := range d.keys {
		if r := d.states[k].row; r != nil {
			l.s.offer(l.shard, k, r, now)
		}
	}
}

// decide runs in the shard's actor. It reads one row a session.
func (l *lane) decide(d *decision, batch []*change, at dunlin.Time) ([]dunlin.Put, error) {
	d.states, d.was = make(map[string]state, len(batch)), make(map[string]bool, len(batch))
	d.keys, d.replies = nil, make([]reply, 0, len(batch))
	changed := map[string]bool{}
	for _, c := range batch {
		st, known := d.states[c.key]
		if !known {
			var err error
			if st, err = l.load(c.key); err != nil {
				return nil, err
			}
			d.keys, d.was[c.key] = append(d.keys, c.key), st.row != nil
		}
		next, a := st.step(c.q, at)
		if next.row != st.row {
			changed[c.key] = true
		}
		d.states[c.key] = next
		d.replies = append(d.replies, a)
	}
	var puts []dunlin.Put
	for _, k := range d.keys {
		st := d.states[k]
		switch {
		case !changed[k], st.row == nil && !d.was[k]:
		case st.row == nil:
			puts = append(puts, dunlin.Put{Table: dunlin.TableSessions, Key: k})
		default:
			puts = append(puts, dunlin.Put{Table: dunlin.TableSessions, Key: k, Value: appendRow(nil, st.row)})
		}
	}
	return puts, nil
}

func (st state) step(q *request, at dunlin.Time) (state, reply) {
	switch q.kind {
	case kindOpen:
		return st.open(q, at)
	case kindSave:
		return st.save(q, at)
	case kindNote:
		return st.note(q, at)
	case kindOrphan:
		return st.orphan(q, at)
	case kindSaid:
		return st.said(q, at)
	}
	return st.expire(q, at)
}

// load reads what is known of a session. A row that doesn't parse is another version's, or damaged: the session is gone,
// which its client is told, and the node goes on.
func (l *lane) load(key string) (state, error) {
	l.mu.Lock()
	st := state{hold: l.mu.holds[key]}
	l.mu.Unlock()
	b, ok, err := l.s.deps.Rows.Row(l.shard, dunlin.TableSessions, key)
	if err != nil || !ok {
		return st, err
	}
	if st.row, err = decodeRow(b); err != nil {
		l.s.cfg.Log.Error("sessions: row", slog.String("key", key), slog.Any("error", err))
		st.row = &row{epoch: uint64(l.s.cfg.Clock())} // what its holder has does not count any more
	}
	return st, nil
}

// remember keeps who holds sessions that have no row.
func (l *lane) remember(d *decision) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range d.keys {
		h := d.states[k].hold
		_, known := l.mu.holds[k]
		switch {
		case h.node == 0:
			delete(l.mu.holds, k)
		case known || len(l.mu.holds) < l.s.cfg.VolatileMax:
			if l.mu.holds == nil {
				l.mu.holds = map[string]hold{}
			}
			l.mu.holds[k] = h
		}
	}
}

// forget is the end of this node's ownership.
func (l *lane) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.holds = nil
}
