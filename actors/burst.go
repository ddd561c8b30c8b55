package actors

import "sync/atomic"

// burst is a list of mailboxes that one or more goroutines run, each mailbox once.
type burst struct {
	what  int32
	list  []*mailbox
	start atomic.Int64 // when it began, or was last flushed, as the beat counts time
	taken atomic.Int64 // next in list
	left  atomic.Int64 // not yet run
	refs  atomic.Int64 // goroutines that may still look at it
}

func (b *beat) burst(what int32) *burst {
	bu := b.bursts.Get().(*burst)
	bu.what = what
	bu.taken.Store(0)
	return bu
}

// add takes the mailbox off its list of the beat and returns the next one there.
func (bu *burst) add(m *mailbox) (next *mailbox) {
	bu.list = append(bu.list, m)
	if bu.what == forMail { // the flag falls last: from then on the link is somebody else's
		next = m.nextMail
		m.onMail.Store(false)
	} else {
		next = m.nextTurn
		m.onTurn.Store(false)
	}
	return next
}

func (b *beat) free(bu *burst) {
	clear(bu.list)
	bu.list = bu.list[:0]
	b.bursts.Put(bu)
}
