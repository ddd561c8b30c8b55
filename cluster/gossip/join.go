package gossip

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// refusals is why this node may not take part, as the delegate found.
type refusals struct {
	sync.Mutex
	recent  [8]error // of joins, either way; a ring
	next    int
	since   dunlin.Time // of a conflict that goes on
	last    dunlin.Time
	sighted error
	pending error
}

// A conflict is taken for real if it was seen again after conflictLasts, which is longer than a death stays unnoticed, and
// with no longer than conflictGap between two sightings.
const (
	conflictLasts = 5 * time.Second
	conflictGap   = time.Minute
)

func (r *refusals) note(err error) {
	r.Lock()
	defer r.Unlock()
	r.recent[r.next%len(r.recent)] = err
	r.next++
}

// find returns the noted error whose text is in memberlist's, which keeps only the text.
func (r *refusals) find(text string) error {
	r.Lock()
	defer r.Unlock()
	for _, err := range r.recent {
		if err != nil && strings.Contains(text, err.Error()) {
			return err
		}
	}
	return nil
}

// conflict notes a sighting of a conflict; ours: that it is this node that has to go.
func (r *refusals) conflict(err error, ours bool, now dunlin.Time) {
	r.Lock()
	defer r.Unlock()
	if r.since == 0 || now.Sub(r.last) > conflictGap {
		r.since = now
	}
	r.last, r.sighted = now, err
	if ours && now.Sub(r.since) >= conflictLasts {
		r.pending = err
	}
}

// take returns a conflict that was sighted since the last call, and one that has to be told.
func (r *refusals) take() (sighted, pending error) {
	r.Lock()
	defer r.Unlock()
	sighted, pending = r.sighted, r.pending
	r.sighted, r.pending = nil, nil
	return sighted, pending
}

// joinsMax bounds the nodes that a Join meets at once.
const joinsMax = 4

// Join meets the nodes that seeds name: "host", "host:port", "dns:name[:port]" (all its addresses), "srv:name",
// "file:path" (one seed a line). It returns how many it met; an error only if it met none, with each seed's reason on a
// line of its own. To try again is the caller's.
func (g *Gossip) Join(ctx context.Context, seeds []string) (int, error) {
	if len(seeds) == 0 {
		return 0, fmt.Errorf("%w: no seeds to join", dunlin.ErrInvalid)
	}
	addrs, errs := resolve(ctx, g.cfg.Resolver, seeds)
	var (
		mu   sync.Mutex
		met  int
		wg   sync.WaitGroup
		slot = make(chan struct{}, joinsMax)
		self bool
	)
	for _, a := range addrs {
		if a.addr == g.addr {
			self = true
			continue
		}
		select {
		case slot <- struct{}{}:
		case <-ctx.Done():
			errs = append(errs, fmt.Errorf("%s: %w", a, context.Cause(ctx)))
			continue
		}
		wg.Go(func() {
			defer func() { <-slot }()
			err := g.meet(ctx, a)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				met++
			} else {
				errs = append(errs, err)
			}
		})
	}
	wg.Wait()
	if met > 0 {
		return met, nil
	}
	if self && len(errs) == 0 {
		return 0, fmt.Errorf("%w: the seeds name only this node itself (%s)", dunlin.ErrUnavailable, g.addr)
	}
	return 0, errors.Join(errs...)
}

// meet exchanges what is known with the node at an address. When ctx ends first the exchange goes on, which does no harm:
// each of its steps is bounded, and Close ends it.
func (g *Gossip) meet(ctx context.Context, a seed) error {
	g.life.Lock()
	if g.life.closed || g.life.left {
		g.life.Unlock()
		return fmt.Errorf("%s: %w", a, errClosed)
	}
	done := make(chan error, 1)
	g.wg.Go(func() {
		_, err := g.list.Join([]string{a.addr})
		done <- err
	})
	g.life.Unlock()
	select {
	case err := <-done:
		if err == nil {
			return nil
		}
		return fmt.Errorf("%s: %w", a, g.explain(a.addr, err))
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", a, context.Cause(ctx))
	}
}

// explain says in our words why memberlist could not join.
func (g *Gossip) explain(addr string, err error) error {
	text := err.Error()
	if several, ok := err.(interface{ WrappedErrors() []error }); ok && len(several.WrappedErrors()) == 1 {
		text = several.WrappedErrors()[0].Error()
	}
	text = strings.TrimPrefix(text, "failed to join "+addr+": ")
	if refused := g.refusals.find(text); refused != nil {
		return refused
	}
	if isKeyError(text) {
		return fmt.Errorf("%w: the node there has another cluster secret: give this node the cluster's, which `dunlin "+
			"cluster key` shows on a member's machine, or look whether the port is that of gossip", dunlin.ErrUnauthenticated)
	}
	return fmt.Errorf("%w: %s", dunlin.ErrUnavailable, text)
}

// isKeyError tells memberlist's words for a message under another key, or under none.
func isKeyError(text string) bool {
	return strings.Contains(text, "no installed keys could decrypt") ||
		strings.Contains(text, "encryption is configured but remote state is not encrypted") ||
		strings.Contains(text, "remote state is encrypted and encryption is not configured")
}
