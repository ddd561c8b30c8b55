package router

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"math"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/entry"
)

// replyBytesMax bounds what a question may be answered with; a page that is larger is made shorter.
const replyBytesMax = 4 << 20

// Twin implements dunlin.Inspector.
func (r *Router) Twin(ctx context.Context, key dunlin.DeviceKey) (*dunlin.Twin, error) {
	sh := r.cfg.ShardOf(key)
	st, err := one(ctx, r, sh, func() (*dunlin.DeviceState, error) { return r.state(sh, key) },
		func(node dunlin.NodeID) (*dunlin.DeviceState, error) {
			b, err := r.ask(ctx, node, methodTwin, question{Tenant: key.Tenant, Device: key.Device})
			if err != nil {
				return nil, err
			}
			return entry.DecodeState(b)
		})
	if err != nil {
		return nil, fmt.Errorf("twin of %s: %w", key, err)
	}
	return st.Twin(), nil
}

func (r *Router) state(sh dunlin.ShardID, key dunlin.DeviceKey) (*dunlin.DeviceState, error) {
	st, known, err := r.deps.State.LoadDevice(sh, key)
	if err == nil && (!known || st.Domain == "") {
		err = dunlin.ErrNotFound
	}
	return st, err
}

// twinAsked is a question by AskTwin.
type twinAsked struct {
	key    dunlin.DeviceKey
	answer func(*dunlin.Twin, error)
}

// AskTwin implements actors.Elsewhere. Run works it off.
func (r *Router) AskTwin(key dunlin.DeviceKey, answer func(*dunlin.Twin, error)) {
	err := errClosing
	r.mu.Lock()
	if !r.mu.closed {
		select {
		case r.mail <- twinAsked{key, answer}:
			err = nil
		default:
			err = errMail
		}
	}
	r.mu.Unlock()
	if err != nil {
		answer(nil, err)
	}
}

// answerMail asks for twins until ctx ends.
func (r *Router) answerMail(ctx context.Context) {
	for {
		select {
		case m := <-r.mail:
			t, err := r.Twin(ctx, m.key)
			m.answer(t, err)
		case <-ctx.Done():
			return
		}
	}
}

// Readings implements dunlin.Inspector.
func (r *Router) Readings(ctx context.Context, q dunlin.ReadingsQuery) (*dunlin.ReadingsPage, error) {
	sh := r.cfg.ShardOf(q.DeviceKey)
	return one(ctx, r, sh, func() (*dunlin.ReadingsPage, error) { return r.deps.State.Readings(sh, q) },
		func(node dunlin.NodeID) (*dunlin.ReadingsPage, error) {
			b, err := r.ask(ctx, node, methodReadings, question{Tenant: q.Tenant, Device: q.Device, Metrics: q.Metrics, From: int64(q.From),
				To: int64(q.To), Newest: q.Newest, Limit: q.Limit, Bucket: int64(q.Bucket), Cursor: q.Cursor})
			if err != nil {
				return nil, err
			}
			return r.decodeReadings(b)
		})
}

func (q *question) readings() dunlin.ReadingsQuery {
	return dunlin.ReadingsQuery{DeviceKey: q.key(), Metrics: q.Metrics, From: dunlin.Time(q.From), To: dunlin.Time(q.To), Newest: q.Newest,
		Limit: q.Limit, Bucket: time.Duration(q.Bucket), Cursor: q.Cursor}
}

// Device implements dunlin.Registrar.
func (r *Router) Device(ctx context.Context, key dunlin.DeviceKey) (*dunlin.Device, error) {
	if key.Tenant == "" {
		key.Tenant = dunlin.DefaultTenant
	}
	return one(ctx, r, r.cfg.ShardOf(key), func() (*dunlin.Device, error) { return r.deps.Registry.Device(ctx, key) },
		func(node dunlin.NodeID) (*dunlin.Device, error) {
			b, err := r.ask(ctx, node, methodDevice, question{Tenant: key.Tenant, Device: key.Device})
			if err != nil {
				return nil, err
			}
			d := &dunlin.Device{}
			return d, json.Unmarshal(b, d)
		})
}

// answerDevice answers a question about one device; its shard's replica here is fresh enough.
func (r *Router) answerDevice(ctx context.Context, method string, sh dunlin.ShardID, q *question) ([]byte, error) {
	switch method {
	case methodTwin:
		st, err := r.state(sh, q.key())
		if err != nil {
			return nil, err
		}
		return entry.AppendState(nil, st), nil
	case methodDevice:
		d, err := r.deps.Registry.Device(ctx, q.key())
		if err != nil {
			return nil, err
		}
		return json.Marshal(d)
	}
	for rq := q.readings(); ; rq.Limit /= 2 {
		page, err := r.deps.State.Readings(sh, rq)
		if err != nil {
			return nil, err
		}
		if b := appendReadings(page); len(b) <= replyBytesMax || rq.Limit == 1 {
			return b, nil
		}
		if rq.Limit <= 0 {
			rq.Limit = 1000
		}
	}
}

// appendReadings encodes a page of history.
func appendReadings(p *dunlin.ReadingsPage) []byte {
	w := writer{b: []byte{askVersion}}
	w.table.seed = maphash.MakeSeed()
	w.string(p.Next)
	w.records(p.Rows)
	w.uvarint(uint64(len(p.Buckets)))
	at := dunlin.Time(0)
	for i := range p.Buckets {
		b := &p.Buckets[i]
		w.name(b.Metric)
		w.varint(int64(b.Start - at))
		at = b.Start
		w.uvarint(uint64(b.Count))
		for _, f := range [...]float64{b.Min, b.Max, b.Mean, b.First, b.Last} {
			w.b = binary.LittleEndian.AppendUint64(w.b, math.Float64bits(f))
		}
	}
	return w.b
}

func (r *Router) decodeReadings(b []byte) (*dunlin.ReadingsPage, error) {
	rd := &reader{b: b, intern: &r.names}
	if rd.byte("version") != askVersion {
		rd.fail("version")
	}
	p := &dunlin.ReadingsPage{Next: string(rd.bytes("next"))}
	p.Rows = rd.recordList()
	at := dunlin.Time(0)
	for range rd.count("number of buckets", len(b)) {
		bk := dunlin.Bucket{Metric: rd.name("metric")}
		at += dunlin.Time(rd.varint("start"))
		bk.Start = at
		bk.Count = int(rd.uvarint("count"))
		for _, f := range [...]*float64{&bk.Min, &bk.Max, &bk.Mean, &bk.First, &bk.Last} {
			*f = math.Float64frombits(binary.LittleEndian.Uint64(rd.fixed("number", 8)))
		}
		if rd.what != "" {
			break
		}
		p.Buckets = append(p.Buckets, bk)
	}
	if rd.i != len(b) {
		rd.fail("end")
	}
	if rd.what != "" {
		return nil, fmt.Errorf("%w: page of readings: %s", dunlin.ErrInvalid, rd.what)
	}
	return p, nil
}

// head is what pages that are not JSON as a whole begin with.
type head struct {
	Next    string                `json:"next,omitempty"`
	Missing []dunlin.MissingShard `json:"missing,omitempty"`
}

func appendHead(h head) ([]byte, error) {
	j, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	w := writer{b: []byte{askVersion}}
	w.uvarint(uint64(len(j)))
	return append(w.b, j...), nil
}

// cutHead reads what appendHead wrote and returns a reader of the rest.
func cutHead(b []byte) (h head, rd *reader, err error) {
	rd = &reader{b: b}
	if rd.byte("version") != askVersion {
		rd.fail("version")
	}
	if j := rd.bytes("head"); rd.what != "" || json.Unmarshal(j, &h) != nil {
		return h, rd, fmt.Errorf("%w: page: its head", dunlin.ErrInvalid)
	}
	return h, rd, nil
}

// appendAlerts encodes a page of alerts: as an entry with one change that has them all, because JSON has no words for all numbers.
func appendAlerts(p *dunlin.AlertsPage, missing []dunlin.MissingShard) ([]byte, error) {
	b, err := appendHead(head{p.Next, missing})
	if err != nil || len(p.Alerts) == 0 {
		return b, err
	}
	return entry.Append(b, &dunlin.Entry{Changes: []dunlin.Change{{Alerts: p.Alerts}}}), nil
}

func decodeAlerts(b []byte) (*dunlin.AlertsPage, error) {
	h, rd, err := cutHead(b)
	if err != nil {
		return nil, err
	}
	p := &dunlin.AlertsPage{Next: h.Next, Missing: h.Missing}
	if rd.i == len(b) {
		return p, nil
	}
	e, err := entry.Decode(b[rd.i:])
	if err != nil {
		return nil, err
	}
	for i := range e.Changes {
		p.Alerts = append(p.Alerts, e.Changes[i].Alerts...)
	}
	return p, nil
}

// appendLetters encodes dead letters: each as an entry of its moment, with one change of one input and one failed stage.
func appendLetters(letters []dunlin.DeadLetter, missing []dunlin.MissingShard) ([]byte, error) {
	b, err := appendHead(head{"", missing})
	if err != nil {
		return nil, err
	}
	var one []byte
	for i := range letters {
		l := &letters[i]
		one = entry.Append(one[:0], &dunlin.Entry{At: l.At, Changes: []dunlin.Change{{DeviceKey: l.DeviceKey, Domain: l.Domain, Version: l.Seq,
			Inputs: []dunlin.Input{l.Input}, Stages: []dunlin.StageResult{{Stage: l.Stage, Hash: l.Hash, Failure: l.Reason}}}}})
		if i > 0 && len(b)+len(one) > replyBytesMax {
			break // the newest come first
		}
		b = append(binary.AppendUvarint(b, uint64(len(one))), one...)
	}
	return b, nil
}

func decodeLetters(b []byte) (*dunlin.DeadLettersPage, error) {
	h, rd, err := cutHead(b)
	if err != nil {
		return nil, err
	}
	p := &dunlin.DeadLettersPage{Missing: h.Missing}
	for rd.i < len(b) {
		e, err := entry.Decode(bytes.Clone(rd.bytes("dead letter")))
		if err != nil || rd.what != "" || len(e.Changes) != 1 || len(e.Changes[0].Inputs) != 1 || len(e.Changes[0].Stages) != 1 {
			return nil, fmt.Errorf("%w: page of dead letters", dunlin.ErrInvalid)
		}
		c := &e.Changes[0]
		p.Letters = append(p.Letters, dunlin.DeadLetter{DeviceKey: c.DeviceKey, Domain: c.Domain, Hash: c.Stages[0].Hash, Stage: c.Stages[0].Stage,
			Seq: c.Version, At: e.At, Reason: c.Stages[0].Failure, Input: c.Inputs[0]})
	}
	return p, nil
}
