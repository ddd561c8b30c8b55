package coap

import (
	"sync"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"

	"github.com/dunlin-iot/dunlin"
)

// unfinished knows the payloads of gateways that were answered 5.03 while some of their devices' parts may be kept. Their
// senders come again with a new message id and token, unlike a retransmission, and a part that is kept must not be kept
// twice: the same payload for the same device by the same sender within SeenAge takes over the first one's MessageID.
type unfinished struct {
	n  atomic.Int32 // of packs, so that who finds none needs no lock and no hash
	mu struct {
		sync.Mutex
		packs map[packKey]unfinishedPack
	}
}

// unfinishedMax bounds the table. A gateway that is forgotten may have a reading without a time of its own kept twice.
const unfinishedMax = 4096

type packKey struct {
	tenant dunlin.Tenant
	sender string
	device dunlin.DeviceID
	sum    uint64 // of the payload
}

type unfinishedPack struct {
	id uint64
	at dunlin.Time // received
}

func keyOf(u *dunlin.Uplink, sum uint64) packKey {
	return packKey{tenant: u.Tenant, sender: u.Sender.ID, device: u.Device, sum: sum}
}

// find returns the message id under which the payload came before; 0 if it did not.
func (t *unfinished) find(u *dunlin.Uplink, body []byte) uint64 {
	if t.n.Load() == 0 {
		return 0
	}
	k := keyOf(u, xxhash.Sum64(body))
	t.mu.Lock()
	defer t.mu.Unlock()
	p, ok := t.mu.packs[k]
	if !ok || u.Received.Sub(p.at) > dunlin.SeenAge {
		return 0
	}
	return p.id
}

// answered notes what u's pack was answered.
func (t *unfinished) answered(u *dunlin.Uplink, sum uint64, later bool) {
	if !later && t.n.Load() == 0 {
		return
	}
	k := keyOf(u, sum)
	t.mu.Lock()
	defer t.mu.Unlock()
	if !later {
		delete(t.mu.packs, k)
	} else {
		if t.mu.packs == nil {
			t.mu.packs = map[packKey]unfinishedPack{}
		}
		if _, ok := t.mu.packs[k]; !ok && len(t.mu.packs) >= unfinishedMax {
			t.makeRoomLocked(u.Received)
		}
		t.mu.packs[k] = unfinishedPack{id: u.MessageID, at: u.Received}
	}
	t.n.Store(int32(len(t.mu.packs)))
}

// makeRoomLocked drops what is too old to be of use, or else any one.
func (t *unfinished) makeRoomLocked(now dunlin.Time) {
	for k, p := range t.mu.packs {
		if now.Sub(p.at) > dunlin.SeenAge {
			delete(t.mu.packs, k)
		}
	}
	for k := range t.mu.packs {
		if len(t.mu.packs) < unfinishedMax {
			break
		}
		delete(t.mu.packs, k)
	}
}
