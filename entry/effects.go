package entry

import (
	"encoding/binary"
	"math"

	"github.com/dunlin-iot/dunlin"
)

// What version 2 brought: all of it is rare but the mark of what made a state, so none of it has room of its own at the
// entry's head.

func (w *writer) commands(cs []dunlin.Command) {
	w.uvarint(uint64(len(cs)))
	for i := range cs {
		c := &cs[i]
		w.string(c.ID)
		w.name(c.Name)
		w.bytes(c.Payload)
		w.uvarint(uint64(c.Format))
		w.time(c.At)
		w.time(c.Deadline)
	}
}

// commands reads what the writer's wrote, in the memory of dst.
func (r *reader) commands(dst []dunlin.Command) []dunlin.Command {
	n := r.count("number of commands", 6)
	if n > cap(dst) {
		dst = room[dunlin.Command](r, n)
	}
	for range n {
		c := dunlin.Command{ID: r.string("id of a command"), Name: r.name("name of a command"), Payload: r.bytes("payload of a command")}
		c.Format = r.contentFormat()
		c.At, c.Deadline = r.time("time of a command"), r.time("deadline of a command")
		if r.what != "" {
			return nil
		}
		dst = append(dst, c)
	}
	return dst
}

func (r *reader) contentFormat() dunlin.ContentFormat {
	f := r.uvarint("content format")
	if f > math.MaxUint16 {
		r.fail("content format")
	}
	return dunlin.ContentFormat(f)
}

func (w *writer) publish(ps []dunlin.Publication) {
	w.uvarint(uint64(len(ps)))
	for i := range ps {
		p := &ps[i]
		w.name(p.Topic)
		w.bytes(p.Payload)
		w.uvarint(uint64(p.Format))
	}
}

// sent reads a change's commands and publications.
func (r *reader) sent(c *dunlin.Change, head uint8) {
	if head&changeCommands != 0 {
		c.Commands = some(r.commands(nil))
	}
	if head&changePublish == 0 || r.what != "" {
		return
	}
	n := r.count("number of publications", 3)
	c.Publish = some(room[dunlin.Publication](r, n))
	for range n {
		p := dunlin.Publication{Topic: r.name("topic"), Payload: r.bytes("payload of a publication"), Format: r.contentFormat()}
		if r.what != "" {
			return
		}
		c.Publish = append(c.Publish, p)
	}
}

// some makes an empty list nil, as it would be if it had not been there.
func some[T any](s []T) []T {
	if cap(s) == 0 {
		return nil
	}
	return s
}

func (w *writer) refused(es []dunlin.InputError) {
	w.uvarint(uint64(len(es)))
	for i := range es {
		w.varint(int64(es[i].Input))
		w.string(es[i].Reason)
	}
}

func (r *reader) refused() []dunlin.InputError {
	n := r.count("number of refused inputs", 2)
	if n == 0 {
		return nil
	}
	es := room[dunlin.InputError](r, n)
	for range n {
		e := dunlin.InputError{Input: int(r.varint("refused input")), Reason: r.string("reason")}
		if r.what != "" {
			return nil
		}
		es = append(es, e)
	}
	return es
}

const madeBytes = 8

// mades is a table like that of hashes: nearly all states of an entry were made by the same. It has so few rows that it needs
// no heap; what comes after those is spelled out each time.
type mades struct {
	n    int
	rows [madesMax]dunlin.Made
}

const madesMax = 8

func (t *mades) add(m dunlin.Made) {
	if t.n < madesMax {
		t.rows[t.n] = m
		t.n++
	}
}

func (w *writer) made(m dunlin.Made) {
	for i := range w.mades.n {
		if w.mades.rows[i] == m {
			w.byte(byte(i + 1))
			return
		}
	}
	w.mades.add(m)
	w.byte(0)
	w.fixedMade(m)
}

func (r *reader) made() dunlin.Made {
	n := int(r.byte("mark of a state"))
	if n > r.mades.n {
		r.fail("mark of a state")
		return dunlin.Made{}
	}
	if n > 0 {
		return r.mades.rows[n-1]
	}
	m := r.fixedMade()
	r.mades.add(m)
	return m
}

func (w *writer) fixedMade(m dunlin.Made) {
	w.b = binary.LittleEndian.AppendUint32(w.b, m.Module)
	w.b = binary.LittleEndian.AppendUint32(w.b, m.Config)
}

func (r *reader) fixedMade() (m dunlin.Made) {
	if len(r.b)-r.i < madeBytes {
		r.fail("mark of a state")
		return m
	}
	m.Module, m.Config = binary.LittleEndian.Uint32(r.b[r.i:]), binary.LittleEndian.Uint32(r.b[r.i+4:])
	r.i += madeBytes
	return m
}

// pluginMade writes the mark of a state in a device's state.
func (w *writer) pluginMade(m dunlin.Made) {
	if m == (dunlin.Made{}) {
		w.byte(0)
		return
	}
	w.byte(pluginMade)
	w.fixedMade(m)
}

func (r *reader) pluginMade() dunlin.Made {
	switch r.byte("mark of a state") {
	case 0:
		return dunlin.Made{}
	case pluginMade:
		return r.fixedMade()
	}
	r.fail("mark of a state")
	return dunlin.Made{}
}
