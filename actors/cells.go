package actors

import (
	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/device"
)

// cell is an active device's place in its shard actor.
type cell struct {
	device.Machine
	place   int32 // in cells.ring; negative: no longer there
	bytes   int32 // as counted in cells.bytes
	touched bool  // used since the clock hand passed
	turning bool  // in the turn that is being gathered
}

// cells are a shard's active devices. Those beyond the budget are passivated by a clock hand: it goes round, forgives each
// cell that was used since it last passed, and drops the others. A passivated device keeps nothing in memory; its next
// uplink reads it from the store again.
type cells struct {
	index map[dunlin.DeviceKey]*cell
	ring  []*cell
	hand  int
	bytes int64
}

// cellOverhead is what a cell takes besides its machine: the index's slot with both strings' headers, the ring's, the rest.
const cellOverhead = 120

func (cs *cells) get(key dunlin.DeviceKey) *cell {
	c := cs.index[key]
	if c != nil {
		c.touched = true
	}
	return c
}

func (cs *cells) add(m device.Machine) *cell {
	if cs.index == nil {
		cs.index = make(map[dunlin.DeviceKey]*cell)
	}
	c := &cell{Machine: m, place: int32(len(cs.ring)), touched: true}
	cs.index[c.Key()] = c
	cs.ring = append(cs.ring, c)
	cs.resize(c)
	return c
}

// resize counts the cell's bytes anew.
func (cs *cells) resize(c *cell) {
	if c.place < 0 {
		return
	}
	is := int32(c.Bytes() + cellOverhead)
	cs.bytes += int64(is - c.bytes)
	c.bytes = is
}

func (cs *cells) remove(c *cell) {
	if c.place < 0 {
		return
	}
	delete(cs.index, c.Key())
	last := len(cs.ring) - 1
	cs.ring[c.place] = cs.ring[last]
	cs.ring[c.place].place = c.place
	cs.ring[last] = nil
	cs.ring = cs.ring[:last]
	cs.bytes -= int64(c.bytes)
	c.place = -1
}

func (cs *cells) clear() {
	for _, c := range cs.ring {
		c.place = -1
	}
	*cs = cells{}
}

// evict passivates idle cells until the rest keeps within the budget, or the hand has been round twice. It returns how many.
func (cs *cells) evict(most int, bytes int64) (n int) {
	for steps := 2 * len(cs.ring); steps > 0 && (len(cs.ring) > most || cs.bytes > bytes); steps-- {
		if cs.hand >= len(cs.ring) {
			cs.hand = 0
		}
		switch c := cs.ring[cs.hand]; {
		case c.Busy():
			cs.hand++
		case c.touched:
			c.touched = false
			cs.hand++
		default:
			cs.remove(c)
			n++
		}
	}
	return n
}
