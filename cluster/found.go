package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// Pauses between two attempts to find the others.
const (
	joinEvery    = 500 * time.Millisecond
	tellEvery    = 5 * time.Second
	meetWait     = 2 * time.Second
	conflictWait = 8 * time.Second
)

// Found finds out which cluster a node with an empty data folder belongs to: the one of the seeds, or a new one. It waits for
// the others as long as ctx lasts; tell is told from time to time what it waits for.
func (n *Network) Found(ctx context.Context, tell func(string)) (Founding, error) {
	if len(n.cfg.Seeds) == 0 && n.cfg.Expect <= 1 {
		return n.begin()
	}
	tick := time.NewTicker(joinEvery)
	defer tick.Stop()
	var told time.Duration
	for i := 0; ; i++ {
		_, why := n.gossip.Join(ctx, n.cfg.Seeds)
		if err := n.hopeless(why, time.Duration(i)*joinEvery); err != nil {
			return Founding{}, err
		}
		f, ok, err := n.ask(ctx)
		if ok || errors.Is(err, dunlin.ErrForbidden) {
			return f, err
		}
		if n.mayBegin() {
			return n.begin()
		}
		if waited := time.Duration(i) * joinEvery; waited >= told {
			told = waited + tellEvery
			tell(n.waitsFor(errors.Join(why, err)))
		}
		select {
		case err := <-n.refused:
			return Founding{}, err
		case <-tick.C:
		case <-ctx.Done():
			return Founding{}, fmt.Errorf("%s: %w", n.waitsFor(errors.Join(why, err)), context.Cause(ctx))
		}
	}
}

func (n *Network) waitsFor(why error) string {
	alive, newcomers := n.count()
	switch {
	case n.cfg.Expect > 1 && newcomers < n.cfg.Expect && alive == newcomers:
		return fmt.Sprintf("%d of %d nodes are here to found the cluster", newcomers, n.cfg.Expect)
	case errors.Is(why, dunlin.ErrConflict):
		return fmt.Sprintf("the cluster does not let this node in, unless that changes within seconds: %v", why)
	case why != nil:
		return fmt.Sprintf("no member of the cluster can be reached yet: %v", why)
	}
	return "a member of the cluster to answer"
}

// count returns how many nodes are alive, this one included, and how many of them belong to no cluster yet.
func (n *Network) count() (alive, newcomers int) {
	for _, s := range *n.seen.Load() {
		if s.Alive || s.ID == n.cfg.Node {
			alive++
			if s.Cluster == "" {
				newcomers++
			}
		}
	}
	return alive, newcomers
}

// mayBegin reports whether this node is the one of the founders that begins: the smallest id of at least Expect newcomers.
func (n *Network) mayBegin() bool {
	alive, newcomers := n.count()
	if n.cfg.Expect <= 1 || newcomers < n.cfg.Expect || alive != newcomers {
		return false
	}
	for _, s := range *n.seen.Load() {
		if s.Alive && s.ID < n.cfg.Node {
			return false
		}
	}
	return true
}

func (n *Network) begin() (Founding, error) {
	f := Founding{Cluster: NewClusterID(), Bootstrap: true}
	return f, n.belong(f.Cluster)
}

// ask asks a member which cluster this is.
func (n *Network) ask(ctx context.Context) (f Founding, ok bool, err error) {
	for _, s := range *n.seen.Load() {
		if !s.Alive || s.Cluster == "" || s.Peer == "" || s.ID == n.cfg.Node {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		b, _, e := n.links.CallAddr(ctx, s.Peer, methodHello, nil)
		cancel()
		if e == nil {
			e = json.Unmarshal(b, &f)
		}
		if e != nil {
			err = fmt.Errorf("%s at %s: %w", s.Name, s.Peer, e)
			continue
		}
		if f.Cluster == "" || f.Shards < 1 {
			err = fmt.Errorf("%s at %s: %w: it does not say which cluster it belongs to", s.Name, s.Peer, dunlin.ErrInvalid)
			continue
		}
		return f, true, n.belong(f.Cluster)
	}
	return Founding{}, false, err
}

// hopeless returns an error of a Join that will not go away: another secret, or, after a while, another cluster or a living
// node of the same name. A former life of this node counts as living for some seconds.
func (n *Network) hopeless(err error, tried time.Duration) error {
	if errors.Is(err, dunlin.ErrUnauthenticated) || errors.Is(err, dunlin.ErrConflict) && tried >= conflictWait {
		return err
	}
	return nil
}

// Meet meets the seeds of a node that belongs to a cluster, and whom it remembers, if they can be reached now. It fails if they will not have it.
func (n *Network) Meet(ctx context.Context) error {
	seeds := n.callable()
	if len(seeds) == 0 {
		return nil
	}
	tick := time.NewTicker(joinEvery)
	defer tick.Stop()
	for i := 0; ; i++ {
		one, cancel := context.WithTimeout(ctx, meetWait)
		_, err := n.gossip.Join(one, seeds)
		cancel()
		if !errors.Is(err, dunlin.ErrUnauthenticated) && !errors.Is(err, dunlin.ErrConflict) {
			return nil // met, or nobody is there: they are looked for as long as the node runs
		}
		if err := n.hopeless(err, time.Duration(i)*joinEvery); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("meet the cluster: %w", context.Cause(ctx))
		}
	}
}

// Rejoin meets the others again, as often as it takes, and keeps meeting them: seeds may have been down, and a partition may
// have made both sides forget each other. It returns when ctx ends.
func (n *Network) Rejoin(ctx context.Context, seeds func() []string) error {
	pause := joinEvery
	told := false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-n.met:
			n.remember()
			continue
		case <-ctx.Done():
			return nil
		}
		if s := n.missing(seeds()); len(s) > 0 {
			level := slog.LevelInfo
			if told { // once an outage
				level = slog.LevelDebug
			}
			_, err := n.gossip.Join(ctx, s)
			if told = err != nil; told && ctx.Err() == nil {
				n.cfg.Log.LogAttrs(ctx, level, "members can't be reached, and are called again and again", slog.Any("error", err))
			}
			pause = min(2*pause, 5*time.Second)
		} else {
			pause = 2 * time.Second
		}
		timer.Reset(pause)
	}
}

// missing leaves out the seeds that are alive as gossip sees it.
func (n *Network) missing(seeds []string) []string {
	here := map[string]bool{}
	for _, s := range *n.seen.Load() {
		if s.Alive {
			here[s.Addr] = true
		}
	}
	out := make([]string, 0, len(seeds))
	for _, s := range seeds {
		if !here[s] {
			out = append(out, s)
		}
	}
	return out
}
