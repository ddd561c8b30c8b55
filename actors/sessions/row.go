package sessions

import (
	"time"

	"github.com/dunlin-iot/dunlin"
)

// row is what is kept of a session.
//
//	          open                       save(Done), or the holder is dead
//	(none) ──────────▶ held: holder, will ──────────────────────────────▶ left: endsAt, wills ──┐ endsAt is over and
//	                     ▲                                                  │                   │ all wills are said
//	                     └───────────────────── open ◀──────────────────────┘                   ▼
//	                                                                                          (none)
type row struct {
	epoch     uint64
	holder    dunlin.NodeID // 0: nobody
	expiry    uint32
	since     dunlin.Time // when it was claimed or left
	endsAt    dunlin.Time // of one that nobody holds
	willDelay uint32
	will      []byte // the holder's connection's
	wills     []lateWill
	exact     bool // body is how the last holder left it
	body      []byte
}

// lateWill is a will of a connection that is over.
type lateWill struct {
	epoch uint64
	at    dunlin.Time
	text  []byte
}

// willsMax bounds the wills of a session that wait to be said. The oldest goes: a client that dies so often, on shards
// that don't take its wills, has made its point.
const willsMax = 4

// hold is who has a session that has no row: one that ends with its connection and leaves no will. Only the shard's
// owner knows of it, in memory, and holders tell the next one.
type hold struct {
	node  dunlin.NodeID
	epoch uint64
}

// state is all that an owner knows of a session.
type state struct {
	row  *row // nil: none
	hold hold
}

func seconds(n uint32) time.Duration { return time.Duration(n) * time.Second }

// settle says of a session without a holder what its wills have come to at a moment: they are due at the session's end at
// the latest. over: nothing is left of it.
func (r *row) settle(at dunlin.Time) (over bool) {
	if r.holder != 0 || at < r.endsAt {
		return false
	}
	for i := range r.wills {
		r.wills[i].at = min(r.wills[i].at, r.endsAt)
	}
	return len(r.wills) == 0
}

func (r *row) addWill(w lateWill) {
	if len(r.wills) == willsMax {
		r.wills = r.wills[1:]
	}
	r.wills = append(r.wills, w)
}

// clone copies what the steps below change in place.
func (r *row) clone() *row {
	c := *r
	c.wills = append([]lateWill(nil), r.wills...)
	return &c
}

// holderOf returns who holds the session.
func (st *state) holderOf() hold {
	if st.row != nil && st.row.holder != 0 {
		return hold{st.row.holder, st.row.epoch}
	}
	return st.hold
}

// open grants a claim, or says who holds the session.
func (st state) open(q *request, at dunlin.Time) (state, reply) {
	h := st.holderOf()
	if h.node != 0 && h.node != q.node && q.force != h.epoch {
		return st, reply{status: statusHeld, node: h.node, epoch: h.epoch}
	}
	next := &row{epoch: max(uint64(at), h.epoch+1, q.epoch+1), holder: q.node, expiry: q.expiry, since: at, will: q.will, willDelay: q.willDelay}
	a := reply{status: statusDone}
	if h.node == q.node {
		a.before = h.epoch
	}
	if r := st.row; r != nil {
		r = r.clone()
		next.epoch = max(next.epoch, r.epoch+1)
		lives := r.holder != 0 || r.expiry > 0 && at < r.endsAt
		a.present = lives && !q.clean
		next.wills = r.inherit(a.present, at)
		if a.present {
			a.exact = r.exact && r.holder == 0
			a.body, next.body = r.body, r.body
		}
	}
	a.epoch = next.epoch
	if q.expiry == 0 && len(next.will) == 0 && len(next.wills) == 0 && !a.present {
		a.volatile = true
		return state{hold: hold{q.node, next.epoch}}, a
	}
	return state{row: next}, a
}

// inherit returns the wills that a new claim leaves to be said. One that waits is forgotten if the session goes on in
// time; it is due if the session ends here ([MQTT-3.1.3-9]).
func (r *row) inherit(goesOn bool, at dunlin.Time) []lateWill {
	if r.holder != 0 && len(r.will) > 0 && (!goesOn || r.willDelay == 0) {
		r.addWill(lateWill{r.epoch, at, r.will})
	}
	r.settle(at)
	var kept []lateWill
	for _, w := range r.wills {
		// A node that closed let its clients' wills wait for their return: that of a session that doesn't outlive its
		// connection, too.
		back := w.epoch == r.epoch && w.at > at && (goesOn || r.expiry == 0 && r.holder == 0)
		if !back {
			w.at = min(w.at, at)
			kept = append(kept, w)
		}
	}
	return kept
}

// save takes a holder's news.
func (st state) save(q *request, at dunlin.Time) (state, reply) {
	done, conflict := reply{status: statusDone}, reply{status: statusConflict}
	r := st.row
	if r == nil || r.epoch != q.epoch {
		switch {
		case st.hold == hold{q.node, q.epoch}:
			if q.done {
				return state{row: r}, done
			}
			return st, done
		case q.done && q.expiry == 0 && r == nil: // it was said before
			return st, done
		}
		return st, conflict
	}
	if r.holder != q.node {
		if r.holder == 0 && q.done { // likewise
			return st, done
		}
		return st, conflict
	}
	r = r.clone()
	r.expiry, r.body = q.expiry, q.body
	if q.done {
		return r.leave(q, at), done
	}
	r.exact = false
	return state{row: r}, done
}

// leave lets go of a session.
func (r *row) leave(q *request, at dunlin.Time) state {
	r.holder, r.since, r.exact = 0, at, true
	r.endsAt = at.Add(max(seconds(r.expiry), seconds(q.grace)))
	r.bequeath(q.fate, max(seconds(r.willDelay), seconds(q.grace)), at)
	if r.expiry == 0 {
		r.body = nil
	}
	if r.settle(at) || r.expiry == 0 && len(r.wills) == 0 {
		return state{}
	}
	return state{row: r}
}

func (r *row) bequeath(fate dunlin.SessionWill, delay time.Duration, at dunlin.Time) {
	if len(r.will) > 0 && fate != dunlin.WillForget {
		due := at
		if fate == dunlin.WillDelay {
			due = at.Add(delay)
		}
		r.addWill(lateWill{r.epoch, due, r.will})
	}
	r.will, r.willDelay = nil, 0
}

// orphan lets go for a holder that is lost, and fences it.
func (st state) orphan(q *request, at dunlin.Time) (state, reply) {
	done := reply{status: statusDone}
	r := st.row
	if r == nil || r.holder == 0 || r.epoch != q.epoch {
		return st, done
	}
	r = r.clone()
	r.holder, r.since, r.exact = 0, at, false
	r.endsAt = at.Add(seconds(r.expiry))
	r.bequeath(dunlin.WillDelay, seconds(r.willDelay), at)
	for i := range r.wills {
		if r.wills[i].epoch == r.epoch {
			r.wills[i].epoch++ // still the newest's, see inherit
		}
	}
	r.epoch++
	if r.settle(at) || r.expiry == 0 && len(r.wills) == 0 {
		return state{}, done
	}
	return state{row: r}, done
}

// said forgets a will that is said.
func (st state) said(q *request, at dunlin.Time) (state, reply) {
	done := reply{status: statusDone}
	if st.row == nil {
		return st, done
	}
	r := st.row.clone()
	r.wills = nil
	for _, w := range st.row.wills {
		if w.epoch != q.epoch {
			r.wills = append(r.wills, w)
		}
	}
	if r.holder == 0 && len(r.wills) == 0 && (r.expiry == 0 || at >= r.endsAt) {
		return state{}, done
	}
	return state{row: r}, done
}

// expire ends what is over.
func (st state) expire(_ *request, at dunlin.Time) (state, reply) {
	done := reply{status: statusDone}
	if st.row != nil && st.row.clone().settle(at) {
		return state{hold: st.hold}, done
	}
	return st, done
}

// note takes what a holder tells a new owner about a session that has no row. The newer claim stays; whoever loses is told.
func (st state) note(q *request, _ dunlin.Time) (state, reply) {
	h := st.holderOf()
	switch {
	case st.row != nil && (st.row.holder != 0 || st.row.epoch > q.epoch):
		return st, reply{status: statusConflict}
	case h.node == 0 || h == hold{q.node, q.epoch}:
	case h.epoch > q.epoch:
		return st, reply{status: statusConflict}
	default:
		return state{row: st.row, hold: hold{q.node, q.epoch}}, reply{status: statusHeld, node: h.node, epoch: h.epoch}
	}
	return state{row: st.row, hold: hold{q.node, q.epoch}}, reply{status: statusDone}
}
