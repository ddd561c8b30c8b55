package placement

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// keep looks after the peers: calls whose time is over, connections to make and to forget, and who is a member.
func (r *Remote) keep() {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	pushed := r.cfg.now()
	for {
		poked := false
		select {
		case <-r.stop:
			return
		case <-r.poke:
			poked = true
		case <-tick.C:
		}
		now := r.cfg.now()
		if poked || now-pushed >= pushEvery {
			pushed = now
			r.push()
		}
		known := *r.known.Load()
		r.peers.Range(func(k, v any) bool {
			p := v.(*peer)
			m, ok := known[p.node]
			p.tend(now, ok && m.Alive && m.State != dunlin.MemberLeft)
			if !ok && p.unused() && r.strange(p.node) {
				r.peers.CompareAndDelete(k, v)
				r.byAddr.CompareAndDelete(p.where(), v)
			}
			return true
		})
	}
}

func (p *peer) where() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.addr
}

// strange returns whether nobody can tell where the node is.
func (r *Remote) strange(node dunlin.NodeID) bool {
	_, err := r.whereIs(node)
	return err != nil && node != r.cfg.Self
}

// push takes over what Members says: to us, and to protoactor. Connections to the living are made before anybody calls: a
// peer answers over its own connection to this node, so both have to be there.
func (r *Remote) push() {
	members := r.cfg.Members()
	known := make(map[dunlin.NodeID]dunlin.Member, len(members))
	for _, m := range members {
		known[m.ID] = m
	}
	r.known.Store(&known)
	r.provider.push(members)
	for _, m := range members {
		switch {
		case m.ID == r.cfg.Self || m.ID == 0:
		case m.Alive && m.State != dunlin.MemberLeft && m.Calls != "":
			// An error is for those who call it.
			_ = r.peer(m.ID).locate()
		default:
			if p, ok := r.peers.Load(m.ID); ok {
				p.(*peer).lose(fmt.Errorf("node %s is down, or has left", m.Name))
			}
		}
	}
}

// lose gives a connection up that may look well still: of a peer that is stopped, or cut off.
func (p *peer) lose(why error) {
	p.mu.Lock()
	s := p.mu.current
	p.mu.Unlock()
	if s != nil {
		s.end(why)
	}
	p.fail(fmt.Errorf("%w: %w", dunlin.ErrUnavailable, why))
}

// Close refuses new calls, waits until ctx ends for those that it serves, and takes the node off the network. The system
// stays as it is, for whoever made it to shut down.
func (r *Remote) Close(ctx context.Context) error {
	r.life.Lock()
	was := r.life.closing
	r.life.closing = true
	r.life.Unlock()
	if was {
		return nil
	}
	r.each(func(p *peer) { p.fail(errClosed) })
	err := r.idle(ctx)
	close(r.serve)
	ended := err == nil
	if ended {
		r.flush(ctx)
	} else {
		last, cancel := context.WithTimeout(until(nil), time.Second)
		ended = r.idle(last) == nil
		cancel()
	}
	r.life.Lock()
	r.life.closed = true
	r.life.Unlock()
	close(r.stop)
	if ended { // what does not end although its context has can't be waited for
		r.wg.Wait()
	}
	r.detach()
	r.met.close()
	return err
}

func (r *Remote) each(f func(*peer)) {
	r.peers.Range(func(_, v any) bool {
		f(v.(*peer))
		return true
	})
}

// idle waits until nothing is being served.
func (r *Remote) idle(ctx context.Context) error {
	return wait(ctx, func() bool {
		n := int64(0)
		r.each(func(p *peer) { n += p.serving.Load() })
		return n == 0
	}, errors.New("calls are still being served"))
}

// flushMax is how long Close waits for the last answers to leave.
const flushMax = 250 * time.Millisecond

// flush waits for the answers that are with remote's writers. That they leave is a favour to the peers, which otherwise
// see a lost connection.
func (r *Remote) flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, flushMax)
	defer cancel()
	_ = wait(ctx, func() bool {
		n := int64(0)
		r.each(func(p *peer) {
			p.mu.Lock()
			if p.mu.state == stateUp {
				n += p.mu.queued.Load()
			}
			p.mu.Unlock()
		})
		return n <= 0
	}, errClosed)
	// gRPC tells that it has taken a message, not that it has written it; closing then would lose the answer.
	select {
	case <-time.After(writeGrace):
	case <-ctx.Done():
	}
}

// writeGrace is for gRPC's writers to get what they have taken onto the wire.
const writeGrace = 20 * time.Millisecond

func wait(ctx context.Context, ok func() bool, why error) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("close calls: %w: %w", why, context.Cause(ctx))
		}
	}
	return nil
}

// detach ends what protoactor has going. Its own Shutdown would wait up to ten seconds for peers to hang up, or leave its
// writers and their connections behind.
func (r *Remote) detach() {
	sys := r.cfg.System
	r.out.stop(errClosed)
	for _, id := range []string{"EndpointSupervisor", "activator"} {
		// The writers are the supervisor's children. None of them waits for anything any more: see outgoing.
		_ = sys.Root.StopFuture(sys.NewLocalPID(id)).Wait()
	}
	r.cluster.Remote.Shutdown(false)
	sys.ProcessRegistry.Remove(r.pid)
	_ = r.provider.Shutdown(false)
	r.lookup.Shutdown()
}
