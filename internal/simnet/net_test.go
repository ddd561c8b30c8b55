package simnet

import (
	"time"

	"github.com/dunlin-iot/dunlin"
)

// network is what lies between the nodes.
type network struct {
	loss    int // percent
	double  int // percent
	slow    int // percent of messages that take long
	blocked map[link]bool
}

// link is one direction between two nodes.
type link struct{ from, to dunlin.NodeID }

// send carries something from one node to another, 0 being the outside world; or it doesn't.
func (w *world) send(from, to dunlin.NodeID, arrive func()) {
	w.stats.messages++
	if w.net.blocked[link{from, to}] || w.chance(w.net.loss) {
		return
	}
	copies := 1
	if w.chance(w.net.double) {
		copies++
	}
	for range copies {
		d := w.between(300*time.Microsecond, 2*time.Millisecond)
		if w.chance(w.net.slow) {
			d = w.between(5*time.Millisecond, 400*time.Millisecond)
		}
		w.after(d, arrive)
	}
}

func (w *world) block(from, to dunlin.NodeID) {
	if w.net.blocked == nil {
		w.net.blocked = map[link]bool{}
	}
	w.net.blocked[link{from, to}] = true
}

// partition cuts a node off, or the cluster in two, in one direction or both.
func (w *world) partition() {
	up := w.living()
	if len(up) < 2 {
		return
	}
	side := map[dunlin.NodeID]bool{}
	one := up[w.rng.IntN(len(up))].id
	side[one] = true
	text := ""
	if w.rng.IntN(2) == 0 {
		for _, n := range up {
			side[n.id] = w.rng.IntN(2) == 0
		}
	}
	way := w.rng.IntN(3) // out, in, both
	for _, a := range up {
		if side[a.id] {
			text += " " + a.String()
		}
		for _, b := range up {
			if side[a.id] && !side[b.id] {
				if way != 1 {
					w.block(a.id, b.id)
				}
				if way != 0 {
					w.block(b.id, a.id)
				}
			}
		}
	}
	w.say("partition (%s):%s", []string{"they are not heard", "they hear nothing", "both ways"}[way], text)
	w.after(w.between(200*time.Millisecond, 4*time.Second), func() {
		if w.net.blocked != nil {
			w.say("partition is over")
			w.net.blocked = nil
		}
	})
}
