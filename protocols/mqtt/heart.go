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
