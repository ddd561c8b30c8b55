package mqtt

import (
	"context"
	"errors"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// chore is a SUBSCRIBE or UNSUBSCRIBE whose answer has to wait for somebody: for the position that the subscriptions begin
// at, which other nodes may be asked for, and for the session to be kept. Until then nothing more is read from the
// connection, so a connection has one chore at a time.
type chore struct {
	kind    byte // of the answer
	id      uint16
	codes   []byte
	granted []subscription
}

// errNoPresent ends a connection whose chore could not be done in time.
var errNoPresent = &fault{codeServerBusy, "the node could not keep the subscription in time"}

// chore does it and answers, or ends the connection: an answer would say "kept".
func (g *Gateway) chore(c *conn, s *session, ch *chore) {
	ctx, cancel := context.WithTimeoutCause(g.life, g.cfg.HoldMax, errNoPresent)
	defer cancel()
	if err := g.doChore(ctx, c, s, ch); err != nil {
		if g.life.Err() == nil && !errors.Is(err, errGone) {
			g.end(c, ending{fault: errNoPresent, will: true})
		}
		return
	}
	t := g.newTurn(g.now())
	t.c = c
	c.mu.Lock()
	if m := &c.mu.m; m.phase == phaseOpen {
		m.busy = false
		t.out = appendSuback(t.out, ch.kind, ch.id, ch.codes, m.v5)
		c.sendLocked(t)
		c.feedLocked()
		c.unpauseLocked(t)
	}
	c.mu.Unlock()
	t.ingest()
	g.follow(c, s)
}

func (g *Gateway) doChore(ctx context.Context, c *conn, s *session, ch *chore) error {
	if len(ch.granted) > 0 {
		now, err := g.present(ctx)
		if err != nil {
			return err
		}
		c.mu.Lock()
		v5, open := c.mu.m.v5, c.mu.m.phase == phaseOpen
		c.mu.Unlock()
		if !open {
			return errGone
		}
		ch.trim(s.subscribe(c, ch.granted, now, g.cfg.SubscriptionsMax), v5)
	}
	return g.keep(ctx, s, c)
}

// trim refuses what was granted beyond the first taken: the bound on subscriptions is for those that come last.
func (ch *chore) trim(taken int, v5 bool) {
	for i := range ch.codes {
		switch {
		case ch.codes[i] >= 0x80:
		case taken > 0:
			taken--
		case v5:
			ch.codes[i] = codeQuotaExceeded
		default:
			ch.codes[i] = subackFailure
		}
	}
}

// present asks the feed where the log is now, until it knows.
func (g *Gateway) present(ctx context.Context) (dunlin.Cursor, error) {
	for wait := retryMin; ; wait = min(2*wait, retryMax) {
		now, err := g.deps.Feed.Now(ctx)
		if err == nil || !temporary(err) {
			return now, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, context.Cause(ctx)
		}
	}
}
