package mqtt

import (
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// heart knows whether this process was stopped lately (by its hypervisor, SIGSTOP, a machine without air). It then finds packets in
// its sockets that came meanwhile. Their clients have given up and sent them again, with DUP, to another node, which has acknowledged
// them; but these here are the originals and say nothing of a repetition. So what is read after a stop is taken for one that may be.
type heart struct {
	last  atomic.Int64 // dunlin.Time of the last beat; 0: none yet
	until atomic.Int64 // what is read before this may have come in a stop
	cut   atomic.Int64 // when the node last lost or found another one
}

// A process that does not beat for stopMin was stopped. Its readers get through what has piled up within catchUp.
const (
	stopMin = time.Second
	catchUp = 2 * time.Second
)

// beat is called every wheelTick.
func (h *heart) beat(now dunlin.Time) {
	if last := dunlin.Time(h.last.Load()); last != 0 && now.Sub(last) > stopMin {
		h.until.Store(int64(now.Add(catchUp)))
	}
	h.last.Store(int64(now))
}

// stood reports whether what is read now may have come in a stop. A reader may be awake before the beat is.
func (h *heart) stood(now dunlin.Time) bool {
	last := dunlin.Time(h.last.Load())
	return int64(now) < h.until.Load() || last != 0 && now.Sub(last) > stopMin
}

// cutFor is how long after a cut a packet may come that was sent before it: TCP repeats it after up to so long.
const cutFor = 10 * time.Second

// late reports whether what is read now from a connection that began at since may have been sent before a cut between nodes
// healed, and again, elsewhere, meanwhile. Clients that came later have nothing from before.
func (h *heart) late(now, since dunlin.Time) bool {
	cut := dunlin.Time(h.cut.Load())
	return cut != 0 && since < cut && now.Sub(cut) < cutFor
}

// LinkChanged tells that this node has lost another one, or found it again. Clients may have been cut off with it, and what
// they sent then may still be on its way here, although it was taken elsewhere. It never blocks.
func (g *Gateway) LinkChanged() { g.heart.cut.Store(int64(g.now())) }
