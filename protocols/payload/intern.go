package payload

import (
	"hash/maphash"
	"sync/atomic"
)

// interner gives equal bytes the same string, without a lock and within bounds: a hash table of fixed size whose entries
// are immutable. When a string's places are all taken, it takes one of them over. So a flood of made-up names costs an
// allocation for each, and afterwards the real ones are back after one miss each.
type interner struct {
	seed  maphash.Seed
	slots [internSlots]atomic.Pointer[string]
}

const (
	internSlots = 4096 // a power of two
	internTries = 4
)

func (t *interner) init() { t.seed = maphash.MakeSeed() }

// find returns the string of b, if it is in the table, and the place where b belongs.
func (t *interner) find(b []byte) (s string, place uint64, ok bool) {
	place = maphash.Bytes(t.seed, b)
	for i := range uint64(internTries) {
		p := t.slots[(place+i)%internSlots].Load()
		if p == nil {
			break
		}
		if *p == string(b) {
			return *p, place, true
		}
	}
	return "", place, false
}

// add puts s into the table at the place that find gave.
func (t *interner) add(s string, place uint64) {
	for i := range uint64(internTries) {
		if t.slots[(place+i)%internSlots].CompareAndSwap(nil, &s) {
			return
		}
	}
	t.slots[(place+place>>32%internTries)%internSlots].Store(&s)
}
