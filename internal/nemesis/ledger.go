package nemesis

import (
	"fmt"
	"sync"

	"github.com/dunlin-iot/dunlin"
)

// ledger is what nodes said over the whole run of who owns what and of what they have, and what of it can't all be true: that a
// shard has two owners in one term, or two states after one entry.
type ledger struct {
	mu struct {
		sync.Mutex
		owners map[reign]claim
		states map[place]state
		names  map[dunlin.NodeID]string
		counts count // since they were taken
		wrong  []wrong
	}
}

// reign is a shard in a term; place is a shard after an entry.
type (
	reign struct {
		shard dunlin.ShardID
		term  uint64
	}
	place struct {
		shard dunlin.ShardID
		index uint64
	}
)

type claim struct {
	owner  dunlin.NodeID
	source string
	twice  bool // there was another one
}

type state struct {
	hash string
	node dunlin.NodeID
}

type wrong struct{ kind, text string }

func newLedger() *ledger {
	l := &ledger{}
	l.mu.owners, l.mu.states, l.mu.names = map[reign]claim{}, map[place]state{}, map[dunlin.NodeID]string{}
	return l
}

// called says how a node is called. Names come back with another node's data; ids do not.
func (l *ledger) called(id dunlin.NodeID, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.names[id] = name
}

// name needs the lock.
func (l *ledger) name(id dunlin.NodeID) string {
	if name := l.mu.names[id]; name != "" {
		return name
	}
	return id.String()
}

// reported takes what a node says of its replicas: what it owns, and of whom it has heard as an owner.
func (l *ledger) reported(r *dunlin.NodeReplicas) {
	l.called(r.Node, r.Name)
	for i := range r.Replicas {
		s := &r.Replicas[i]
		l.owns(s.Shard, s.Owns, r.Node, r.Name+" says so of itself")
		l.owns(s.Shard, s.LeaderTerm, s.Leader, "as "+r.Name+" has heard")
	}
}

// owns takes a claim. Term 0 and nobody are none.
func (l *ledger) owns(sh dunlin.ShardID, term uint64, node dunlin.NodeID, source string) {
	if term == 0 || node == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.counts.Claims++
	was, known := l.mu.owners[reign{sh, term}]
	switch {
	case !known:
		l.mu.counts.Reigns++
		l.mu.owners[reign{sh, term}] = claim{owner: node, source: source}
	case was.owner != node && !was.twice:
		was.twice = true
		l.mu.owners[reign{sh, term}] = was
		l.mu.counts.OwnedTwice++
		l.mu.wrong = append(l.mu.wrong, wrong{"owned twice", fmt.Sprintf("shard %d in term %d: %s owns it (%s), and %s owns it (%s)", sh, term,
			l.name(was.owner), was.source, l.name(node), source)})
	}
}

// activated takes that a node began to work for a shard. What a node logs it has done: no activation is missed.
func (l *ledger) activated(sh dunlin.ShardID, term uint64, node dunlin.NodeID, source string) {
	l.owns(sh, term, node, "logged in "+source)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.counts.Activations++
	if node == 0 {
		l.mu.counts.Nameless++
	}
}

// compared counts shards of which all replicas were compared, and those of which they could not be.
func (l *ledger) compared(whole, not int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.counts.States += whole
	l.mu.counts.Uncompared += not
}

// has takes a replica's hash.
func (l *ledger) has(h *dunlin.ShardHash) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := place{h.Shard, h.Applied}
	was, known := l.mu.states[at]
	switch {
	case !known:
		l.mu.states[at] = state{h.Hash, h.Node}
	case was.hash != h.Hash:
		l.mu.counts.Diverged++
		l.mu.wrong = append(l.mu.wrong, wrong{"diverged", fmt.Sprintf("shard %d after entry %d has hash %.8s… on %s, and %.8s… on %s", h.Shard, h.Applied, was.hash,
			l.name(was.node), h.Hash, l.name(h.Node))})
	case was.node != h.Node:
		l.mu.counts.Hashes++
	}
}

// take returns what was counted and found since it was last asked.
func (l *ledger) take() (c count, found []wrong) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, found = l.mu.counts, l.mu.wrong
	l.mu.counts, l.mu.wrong = count{}, nil
	return c, found
}
