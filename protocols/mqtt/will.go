package mqtt

import (
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/dunlin-iot/dunlin"
)

// checkWill makes sure at CONNECT that a will can be published: it is a reading like any other, on behalf of the client.
// A will that the node couldn't keep is refused with the connection, not forgotten when it is due.
func (g *Gateway) checkWill(p *dunlin.Principal, r *connectRequest) (*willMessage, *fault) {
	w := r.will
	if w == nil {
		return nil, nil
	}
	if w.retain && r.v5 {
		return nil, &fault{codeRetainUnsupported, "retained messages are not supported"}
	}
	if _, err := g.willSlot(p, w, xxhash.Sum64String(r.client), false); err != nil {
		return nil, &fault{publishCode(err), "will: " + reason(err)}
	}
	return w, nil
}

// willSlot makes the slot that the will stands for, as if its client published it now. again: it may have been published
// before, and hash says by whom.
func (g *Gateway) willSlot(p *dunlin.Principal, w *willMessage, hash uint64, again bool) (*slot, error) {
	m := machine{cfg: &g.cfg, principal: *p, clientHash: hash}
	t := g.newTurn(g.now())
	s := &slot{}
	pub := publish{topic: []byte(w.topic), payload: w.payload, contentType: []byte(w.contentType), hasType: w.hasType}
	if again {
		pub.qos, pub.dup = 1, true
	}
	if err := m.fill(t, s, &pub); err != nil {
		return nil, err
	}
	if s.u.Kind == dunlin.InputResult {
		return nil, &fault{codeTopicName, "a will is telemetry: it can't answer a command"}
	}
	return s, nil
}

// lastWord is a will that is due, or waits out its delay.
type lastWord struct {
	g         *Gateway
	principal dunlin.Principal
	client    string
	msg       *willMessage
	delay     uint32
	timer     timer
	since     dunlin.Time
	slot      atomic.Pointer[slot] // set once the will is published; nobody else has it
}

// lastWord takes the will of m's connection over.
func (g *Gateway) lastWord(m *machine) *lastWord {
	w := &lastWord{g: g, principal: m.principal, client: m.client, msg: m.will, delay: m.will.delay}
	w.timer.owner = w
	return w
}

// publish adds the will to t.
func (w *lastWord) publish(t *turn) {
	s, err := w.g.willSlot(&w.principal, w.msg, xxhash.Sum64String(w.client), false)
	if err != nil {
		w.lost(err)
		return
	}
	w.since = s.u.Received
	s.u.Waiter = w
	w.slot.Store(s)
	w.g.stats.wills.Add(1)
	t.offer(s)
}

// Done offers the will again while the node only says "not now"; there is no client to hold back.
func (w *lastWord) Done(u *dunlin.Uplink, r dunlin.Receipt) {
	switch {
	case r.Err == nil:
	case temporary(r.Err) && w.g.now().Sub(w.since) < w.g.cfg.HoldMax:
		w.g.wheel.set(&w.timer, w.g.now().Add(time.Second))
	default:
		w.lost(r.Err)
	}
}

func (w *lastWord) wake(dunlin.Time) {
	t := w.g.newTurn(w.g.now())
	t.offer(w.slot.Load())
	t.ingest()
}

func (w *lastWord) lost(err error) {
	w.g.stats.refused.Add(1)
	w.g.log.LogAttrs(w.g.life, slog.LevelWarn, "mqtt: will lost", slog.String("client", w.client), slog.Any("err", err))
}
