package router

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/dunlin-iot/dunlin"
)

// methodUplinks is the call that carries a batch of uplinks.
const methodUplinks = "up"

// arrival is a batch of another node in work: the Waiter of all its uplinks. It outlives the call if that ends first.
type arrival struct {
	receipts []dunlin.Receipt // by Tag
	left     atomic.Int64
	done     chan struct{} // closed by the last receipt
}

// Done implements dunlin.Waiter.
func (a *arrival) Done(u *dunlin.Uplink, rec dunlin.Receipt) {
	a.receipts[u.Tag] = rec
	if a.left.Add(-1) == 0 {
		close(a.done)
	}
}

// fences keep out what comes too late: a lane has one call in flight, so whoever sends its next one has given up the one before.
// That may still arrive, or arrive once more, when the devices' dedupe windows have long moved on.
type fences struct {
	sync.Mutex
	of map[dunlin.NodeID]*fence
}

// fence is the newest call that one node's Router has sent for each shard.
type fence struct {
	life uint64
	seqs []uint64
}

// fencesMax bounds the nodes whose calls are remembered; of more than that one is forgotten.
const fencesMax = 1024

// pass lets a section through that is newer than all before it.
func (f *fences) pass(from dunlin.NodeID, life uint64, s *section, shards int) bool {
	f.Lock()
	defer f.Unlock()
	n := f.of[from]
	if n == nil || n.life != life {
		if f.of == nil {
			f.of = map[dunlin.NodeID]*fence{}
		}
		for id := range f.of {
			if len(f.of) < fencesMax {
				break
			}
			delete(f.of, id)
		}
		n = &fence{life, make([]uint64, shards)}
		f.of[from] = n
	}
	if s.seq <= n.seqs[s.shard] {
		return false
	}
	n.seqs[s.shard] = s.seq
	return true
}

// serveUplinks works off another node's batch: the parts whose shards this node owns, in the term in which the sender believes
// it does or a later one, go to the Directory; the others are refused as a whole, with a hint.
func (r *Router) serveUplinks(ctx context.Context, from dunlin.NodeID, body []byte) ([]byte, error) {
	life, sections, err := decodeBatch(body, &r.names, r.cfg.Shards)
	if err != nil {
		return nil, err
	}
	n := 0
	for i := range sections {
		n += len(sections[i].uplinks)
	}
	a := &arrival{receipts: make([]dunlin.Receipt, n), done: make(chan struct{})}
	answers := make([]answer, len(sections))
	taken := 0
	for i := range sections {
		s := &sections[i]
		if term, ok := r.deps.Local.Owned(s.shard); !ok || term < s.term || !r.fences.pass(from, life, s, r.cfg.Shards) {
			answers[i] = answer{refused: true}
			if node, term, ok := r.deps.Owners.Owner(s.shard); ok {
				answers[i].hint, answers[i].hintTerm = node, term
			}
			continue
		}
		answers[i].receipts = a.receipts[taken : taken+len(s.uplinks)]
		for j := range s.uplinks {
			u := &s.uplinks[j]
			u.Flags |= dunlin.FlagForwarded
			u.Waiter, u.Tag = a, uint64(taken)
			taken++
			if j > 0 {
				s.uplinks[j-1].Next = u
			}
		}
	}
	r.met.arrived.Add(float64(taken))
	if taken > 0 {
		a.left.Store(int64(taken))
		for i := range sections {
			if !answers[i].refused {
				r.post(&sections[i])
			}
		}
		select {
		case <-a.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return appendReply(make([]byte, 0, 16+8*n), answers), nil
}

// post hands a section to the Directory: past our own lane of the shard, in which nothing of its senders is. What the Directory
// does not own any more its sender's Router sends again.
func (r *Router) post(s *section) {
	if len(s.uplinks) == 0 {
		return
	}
	for u := r.deps.Local.Post(s.shard, &s.uplinks[0]); u != nil; {
		next := u.Next
		tell(u, refusal(errMoved))
		u = next
	}
}
