package endpoint

import "time"

// peer is what the machine knows of one endpoint. With its row in the index it takes about 150 bytes.
type peer struct {
	addr     Addr
	gen      uint32 // 0: the slot was never used
	lastSeen uint32 // seconds
	open     uint16 // exchanges, unacknowledged answers among them
	mid      uint16 // next message id of ours to it
	unacked  int32  // its first unacknowledged answer's exchange, +1
	recent   bool   // it had a request since the clock hand came by
	used     bool
	proven   bool // it has shown that it receives at its address
}

// peers is the bounded table of endpoints. A peer stays for ExchangeLifetime after its last request; a clock hand that moves
// a little with every newcomer collects the others. If the table is full, the hand takes whom it finds idle, and those that
// may be forged addresses first: a flood of them pushes out one another.
type peers struct {
	index   map[Addr]uint32
	slots   []peer
	free    []uint32
	max     int
	hand    int
	evicted uint64
}

func newPeers(limit int) peers { return peers{index: map[Addr]uint32{}, max: limit} }

func seconds(now time.Duration) uint32 { return uint32(now / time.Second) }

func (t *peers) find(a *Addr) (Peer, bool) {
	slot, ok := t.index[*a]
	if !ok {
		return Peer{}, false
	}
	return Peer{slot, t.slots[slot].gen}, true
}

// get returns the peer, or nil if its slot has been given to another.
func (t *peers) get(p Peer) *peer {
	if p.Gen == 0 || int(p.Slot) >= len(t.slots) || t.slots[p.Slot].gen != p.Gen || !t.slots[p.Slot].used {
		return nil
	}
	return &t.slots[p.Slot]
}

// add makes room for a new peer; false if every slot has an open exchange.
func (t *peers) add(a *Addr, now time.Duration, mid uint16) (Peer, bool) {
	t.sweep(now, 2)
	if len(t.free) == 0 && len(t.slots) >= t.max {
		t.evict(now)
	}
	var slot uint32
	switch n := len(t.free); {
	case n > 0:
		slot, t.free = t.free[n-1], t.free[:n-1]
	case len(t.slots) < t.max:
		slot = uint32(len(t.slots))
		t.slots = append(t.slots, peer{})
	default:
		return Peer{}, false
	}
	gen := t.slots[slot].gen + 1
	if gen == 0 {
		gen = 1
	}
	t.slots[slot] = peer{addr: *a, gen: gen, lastSeen: seconds(now), mid: mid, recent: true, used: true}
	t.index[*a] = slot
	return Peer{slot, gen}, true
}

// sweep moves the hand n slots on and drops the expired peers there.
func (t *peers) sweep(now time.Duration, n int) {
	for range min(n, len(t.slots)) {
		t.hand = (t.hand + 1) % len(t.slots)
		p := &t.slots[t.hand]
		if p.used && p.open == 0 && seconds(now)-p.lastSeen > uint32(ExchangeLifetime/time.Second) {
			t.drop(t.hand)
		}
	}
}

// evict takes an idle peer's slot. Peers with open exchanges are fewer than ExchangesMax, so the hand need not go far
// unless the table is smaller than that.
func (t *peers) evict(now time.Duration) {
	const strangersMax, stepsMax = 256, 512
	t.sweep(now, 64)
	for step := range stepsMax {
		if len(t.free) > 0 {
			return
		}
		t.hand = (t.hand + 1) % len(t.slots)
		p := &t.slots[t.hand]
		switch {
		case p.open > 0, p.proven && step < strangersMax:
		case p.recent:
			p.recent = false
		default:
			t.drop(t.hand)
			t.evicted++
		}
	}
}

func (t *peers) drop(slot int) {
	p := &t.slots[slot]
	delete(t.index, p.addr)
	p.used = false
	t.free = append(t.free, uint32(slot))
}
