package peer

import "slices"

// flows decides how much of which body may come: all bodies that one connection receives. It is pure.
//
// A body is asked for only once there is room for all of it (budget), so that half-received bodies never wait for each
// other. Of those, no more than window bytes are asked for at a time, piece by piece and in turn, so that no more than that
// lies in the connection before a Raft message that comes later.
type flows struct {
	budget, reserved    int // bytes of bodies that have room, until release
	window, outstanding int // bytes that were granted and have not come
	all                 map[flowKey]*inflow
	waiting             []*inflow // for room, oldest first
	wanting             []*inflow // have room, are to be granted more
}

// flowKey names a body on its way: ids of calls count for each caller by itself.
type flowKey struct {
	id    uint32
	reply bool
}

type inflow struct {
	key     flowKey
	total   int
	granted int
	buf     []byte
	room    bool
	age     int // ticks without a byte
}

type grant struct {
	key flowKey
	n   int
}

func newFlows(budget, window int) *flows {
	return &flows{budget: budget, window: window, all: map[flowKey]*inflow{}}
}

// add expects a body of total bytes; pump then says what to ask for. False: there is one under this key.
func (f *flows) add(key flowKey, total int) bool {
	if f.all[key] != nil {
		return false
	}
	in := &inflow{key: key, total: total}
	f.all[key] = in
	f.waiting = append(f.waiting, in)
	return true
}

// pump grants what can be granted.
func (f *flows) pump() (grants []grant) {
	for len(f.waiting) > 0 && f.reserved+f.waiting[0].total <= f.budget {
		in := f.waiting[0]
		f.waiting = f.waiting[1:]
		in.room = true
		f.reserved += in.total
		f.wanting = append(f.wanting, in)
	}
	for len(f.wanting) > 0 && f.outstanding < f.window {
		in := f.wanting[0]
		n := min(in.total-in.granted, 2*chunkMax, f.window-f.outstanding)
		in.granted += n
		f.outstanding += n
		grants = append(grants, grant{in.key, n})
		f.wanting = f.wanting[1:]
		if in.granted < in.total {
			f.wanting = append(f.wanting, in)
		}
	}
	return grants
}

// data takes a piece. done: the body is complete, and its room taken until release. A piece for a body that nobody waits for
// any more is fine; one that nobody asked for is not.
func (f *flows) data(key flowKey, b []byte) (body []byte, done bool, err error) {
	in := f.all[key]
	if in == nil {
		return nil, false, nil
	}
	if len(b) > in.granted-len(in.buf) {
		return nil, false, broken("%d bytes of a body where %d were asked for", len(b), in.granted-len(in.buf))
	}
	if in.buf == nil {
		in.buf = make([]byte, 0, in.total)
	}
	in.buf, in.age = append(in.buf, b...), 0
	f.outstanding -= len(b)
	if len(in.buf) < in.total {
		return nil, false, nil
	}
	delete(f.all, key)
	return in.buf, true, nil
}

// remove gives a body up that is not complete.
func (f *flows) remove(key flowKey) {
	in := f.all[key]
	if in == nil {
		return
	}
	delete(f.all, key)
	same := func(o *inflow) bool { return o == in }
	f.waiting = slices.DeleteFunc(f.waiting, same)
	f.wanting = slices.DeleteFunc(f.wanting, same)
	f.outstanding -= in.granted - len(in.buf)
	if in.room {
		f.reserved -= in.total
	}
}

// release gives the room of a complete body back.
func (f *flows) release(total int) { f.reserved -= total }

// tick lets time pass and returns the bodies that were asked for and of which nothing came for so many ticks.
func (f *flows) tick(limit int) (stale []flowKey) {
	for key, in := range f.all {
		if in.granted == len(in.buf) {
			continue // it waits for us
		}
		if in.age++; in.age > limit {
			stale = append(stale, key)
		}
	}
	return stale
}
