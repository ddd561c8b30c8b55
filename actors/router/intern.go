package router

import (
	"hash/maphash"
	"strings"
	"sync/atomic"
	"unsafe"
)

// interner gives equal names the same string, without a lock and within bounds, as protocols/payload's does: devices keep the
// names of their metrics, and must not keep the batch that they came in.
type interner struct {
	seed  maphash.Seed
	slots [internSlots]atomic.Pointer[string]
}

const (
	internSlots = 4096 // a power of two
	internTries = 4
)

func (t *interner) init() { t.seed = maphash.MakeSeed() }

// string returns b as a string that shares nothing with it.
func (t *interner) string(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	place := maphash.Bytes(t.seed, b)
	for i := range uint64(internTries) {
		p := t.slots[(place+i)%internSlots].Load()
		if p == nil {
			break
		}
		if *p == unsafe.String(&b[0], len(b)) {
			return *p
		}
	}
	s := strings.Clone(unsafe.String(&b[0], len(b)))
	for i := range uint64(internTries) {
		if t.slots[(place+i)%internSlots].CompareAndSwap(nil, &s) {
			return s
		}
	}
	t.slots[(place+place>>32%internTries)%internSlots].Store(&s)
	return s
}
