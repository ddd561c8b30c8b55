package mqtt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	mochi "github.com/mochi-mqtt/server/v2/packets"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/payload"
)

// openAuth is an open node: everyone may do everything.
type openAuth struct{}

func (openAuth) Authenticate(context.Context, dunlin.LoginAttempt) (dunlin.Principal, error) {
	return dunlin.Principal{Kind: dunlin.PrincipalOpen, Tenant: dunlin.DefaultTenant}, nil
}

// closedAuth knows the device d1, the application app and the gateway gw; their secret is "secret".
type closedAuth struct{}

func (closedAuth) Authenticate(_ context.Context, a dunlin.LoginAttempt) (dunlin.Principal, error) {
	kinds := map[string]dunlin.PrincipalKind{"d1": dunlin.PrincipalDevice, "d2": dunlin.PrincipalDevice,
		"app": dunlin.PrincipalApplication, "gw": dunlin.PrincipalGateway}
	if a.ID == "busy" {
		return dunlin.Principal{}, dunlin.ErrOverloaded
	}
	if kinds[a.ID] == 0 || string(a.Secret) != "secret" {
		return dunlin.Principal{}, dunlin.ErrUnauthenticated
	}
	return dunlin.Principal{Kind: kinds[a.ID], Tenant: dunlin.DefaultTenant, ID: a.ID}, nil
}

// shelf is an Ingestor that keeps uplinks until the test answers them.
type shelf struct {
	mu      sync.Mutex
	waiting []*dunlin.Uplink
	seen    []string // a line each
	auto    bool     // accept at once
	log     *journal // gets what is accepted
	seq     uint64
}

func (s *shelf) Ingest(first *dunlin.Uplink) {
	for u := first; u != nil; {
		next := u.Next
		u.Next = nil
		s.mu.Lock()
		s.seen = append(s.seen, describe(u))
		auto := s.auto
		if !auto {
			s.waiting = append(s.waiting, u)
		}
		s.mu.Unlock()
		if auto {
			s.answer(u, nil)
		}
		u = next
	}
}

func (s *shelf) answer(u *dunlin.Uplink, err error) {
	s.mu.Lock()
	s.seq++
	seq := s.seq
	s.mu.Unlock()
	if err == nil && s.log != nil {
		s.log.add(dunlin.Change{DeviceKey: u.DeviceKey, Version: seq, Inputs: []dunlin.Input{u.Input}})
	}
	r := dunlin.Receipt{Err: err, Seq: seq}
	if err != nil {
		r.RetryAfterSeconds = 1
	}
	u.Waiter.Done(u, r)
}

// take removes the i-th waiting uplink.
func (s *shelf) take(i int) *dunlin.Uplink {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i >= len(s.waiting) {
		return nil
	}
	u := s.waiting[i]
	s.waiting = slices.Delete(s.waiting, i, i+1)
	return u
}

func (s *shelf) lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.seen
	s.seen = nil
	return l
}

func (s *shelf) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting)
}

func describe(u *dunlin.Uplink) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "uplink %s", u.DeviceKey)
	if u.Input.Sender != "" {
		fmt.Fprintf(&b, " by %s", u.Input.Sender)
	}
	if u.Flags&dunlin.FlagMayRepeat != 0 {
		b.WriteString(" may-repeat")
	}
	if u.MessageID != 0 {
		b.WriteString(" id")
	}
	for _, r := range u.Records {
		fmt.Fprintf(&b, " %s=%v%s", r.Metric, r.Value(), r.Unit)
	}
	if u.Kind == dunlin.InputRaw {
		fmt.Fprintf(&b, " raw %q", u.Payload)
	}
	if u.Kind == dunlin.InputResult {
		fmt.Fprintf(&b, " result of %s: %q as %d", u.Timer, u.Payload, u.Format)
	}
	return b.String()
}

// journal is a Feed in memory: shards of entries, each of which may be truncated.
type journal struct {
	mu      sync.Mutex
	shards  [][]*dunlin.Entry
	first   []uint64 // index of shards[i][0]
	changed chan struct{}
	follows int
}

func newJournal(shards int) *journal {
	j := &journal{shards: make([][]*dunlin.Entry, shards), first: make([]uint64, shards), changed: make(chan struct{})}
	for i := range j.first {
		j.first[i] = 1
	}
	return j
}

func (j *journal) shardOf(d dunlin.DeviceID) dunlin.ShardID {
	sum := 0
	for _, b := range []byte(d) {
		sum += int(b)
	}
	return dunlin.ShardID(sum % len(j.shards))
}

// add commits one entry with the changes, which must be of one shard.
func (j *journal) add(changes ...dunlin.Change) {
	j.mu.Lock()
	defer j.mu.Unlock()
	sh := j.shardOf(changes[0].Device)
	j.shards[sh] = append(j.shards[sh], &dunlin.Entry{Shard: sh, Term: 1, Changes: changes})
	close(j.changed)
	j.changed = make(chan struct{})
}

// truncate forgets all but the newest keep entries of each shard.
func (j *journal) truncate(keep int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := range j.shards {
		if n := len(j.shards[i]) - keep; n > 0 {
			j.shards[i] = j.shards[i][n:]
			j.first[i] += uint64(n)
		}
	}
}

func (j *journal) Now(context.Context) (dunlin.Cursor, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	c := make(dunlin.Cursor, len(j.shards))
	for i := range c {
		c[i] = j.first[i] + uint64(len(j.shards[i]))
	}
	return c, nil
}

func (j *journal) Follow(ctx context.Context, from *dunlin.Cursor, device *dunlin.DeviceKey) iter.Seq2[dunlin.FeedItem, error] {
	return func(yield func(dunlin.FeedItem, error) bool) {
		j.mu.Lock()
		j.follows++
		j.mu.Unlock()
		for {
			item, changed, err := j.next(*from, device)
			if err != nil {
				yield(dunlin.FeedItem{}, err)
				return
			}
			if item.Entry == nil {
				select {
				case <-changed:
					continue
				case <-ctx.Done():
					yield(dunlin.FeedItem{}, ctx.Err())
					return
				}
			}
			if ctx.Err() != nil {
				yield(dunlin.FeedItem{}, ctx.Err())
				return
			}
			(*from)[item.Entry.Shard] = item.Index + 1
			if !yield(item, nil) {
				return
			}
		}
	}
}

func (j *journal) next(from dunlin.Cursor, device *dunlin.DeviceKey) (dunlin.FeedItem, chan struct{}, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for sh := range j.shards {
		if device != nil && int(j.shardOf(device.Device)) != sh {
			continue
		}
		if from[sh] < j.first[sh] {
			return dunlin.FeedItem{}, nil, dunlin.ErrCursorLost
		}
		for ; from[sh]-j.first[sh] < uint64(len(j.shards[sh])); from[sh]++ {
			e := j.shards[sh][from[sh]-j.first[sh]]
			if device == nil || slices.ContainsFunc(e.Changes, func(c dunlin.Change) bool { return c.DeviceKey == *device }) {
				return dunlin.FeedItem{Index: from[sh], Entry: e}, nil, nil
			}
		}
	}
	return dunlin.FeedItem{}, j.changed, nil
}

// reading makes a change of one reading.
func reading(dev string, seq uint64, metric string, v float64) dunlin.Change {
	return dunlin.Change{DeviceKey: dunlin.DeviceKey{Tenant: dunlin.DefaultTenant, Device: dunlin.DeviceID(dev)}, Version: seq,
		Inputs: []dunlin.Input{{Kind: dunlin.InputTelemetry, Received: 1, Records: []dunlin.Record{
			{Metric: metric, Kind: dunlin.Number, Num: v, Time: 1_700_000_000_000_000}}}}}
}

// serve runs a gateway for the test.
func serve(t testing.TB, cfg Config, deps Deps) *Gateway {
	t.Helper()
	cfg.Addr = "127.0.0.1:0"
	if deps.Auth == nil {
		deps.Auth = openAuth{}
	}
	if deps.Decoder == nil {
		deps.Decoder = payload.NewDecoder()
	}
	if deps.Log == nil && testing.Verbose() {
		deps.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	g, err := New(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Listen(); err != nil {
		t.Fatal(err)
	}
	run(t, g)
	return g
}

func run(t testing.TB, g *Gateway) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Serve doesn't return")
		}
	})
}

// client speaks raw packets through mochi's codec, which the gateway's own encoders are held against.
type client struct {
	t    testing.TB
	nc   net.Conn
	v5   bool
	buf  []byte
	wait time.Duration
}

func dial(t testing.TB, g *Gateway, v5 bool) *client {
	t.Helper()
	nc, err := net.Dial("tcp", g.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return &client{t: t, nc: nc, v5: v5, wait: 5 * time.Second}
}

func (c *client) packet(kind byte) *mochi.Packet {
	pk := &mochi.Packet{ProtocolVersion: level(c.v5), FixedHeader: mochi.FixedHeader{Type: kind}}
	if kind == typeSubscribe || kind == typeUnsubscribe || kind == typePubrel {
		pk.FixedHeader.Qos = 1
	}
	return pk
}

// bytesOf encodes a client's packet.
func bytesOf(pk *mochi.Packet) []byte {
	var b bytes.Buffer
	var err error
	switch pk.FixedHeader.Type {
	case typeConnect:
		err = pk.ConnectEncode(&b)
	case typePublish:
		err = pk.PublishEncode(&b)
	case typePuback:
		err = pk.PubackEncode(&b)
	case typePubrel:
		err = pk.PubrelEncode(&b)
	case typeSubscribe:
		err = pk.SubscribeEncode(&b)
	case typeUnsubscribe:
		err = pk.UnsubscribeEncode(&b)
	case typePingreq:
		err = pk.PingreqEncode(&b)
	case typeDisconnect:
		err = pk.DisconnectEncode(&b)
	default:
		err = fmt.Errorf("packet type %d", pk.FixedHeader.Type)
	}
	if err != nil {
		panic(err)
	}
	return b.Bytes()
}

func (c *client) send(pks ...*mochi.Packet) {
	c.t.Helper()
	var b []byte
	for _, pk := range pks {
		b = append(b, bytesOf(pk)...)
	}
	c.raw(b)
}

func (c *client) raw(b []byte) {
	c.t.Helper()
	c.nc.SetWriteDeadline(time.Now().Add(c.wait))
	if _, err := c.nc.Write(b); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

func (c *client) connectPacket(id string, edit ...func(*mochi.Packet)) *mochi.Packet {
	pk := c.packet(typeConnect)
	pk.Connect = mochi.ConnectParams{ProtocolName: []byte("MQTT"), ClientIdentifier: id, Clean: true, Keepalive: 60}
	for _, e := range edit {
		e(pk)
	}
	return pk
}

func (c *client) connect(id string, edit ...func(*mochi.Packet)) *mochi.Packet {
	c.t.Helper()
	c.send(c.connectPacket(id, edit...))
	return c.expect(typeConnack)
}

func (c *client) publishPacket(topic string, qos byte, id uint16, body string) *mochi.Packet {
	pk := c.packet(typePublish)
	pk.FixedHeader.Qos, pk.TopicName, pk.PacketID, pk.Payload = qos, topic, id, []byte(body)
	return pk
}

func (c *client) publish(topic string, qos byte, id uint16, body string) {
	c.t.Helper()
	c.send(c.publishPacket(topic, qos, id, body))
}

func (c *client) subscribe(id uint16, filters ...mochi.Subscription) []byte {
	c.t.Helper()
	pk := c.packet(typeSubscribe)
	pk.PacketID, pk.Filters = id, filters
	c.send(pk)
	return c.expect(typeSuback).ReasonCodes
}

func (c *client) puback(id uint16) {
	c.t.Helper()
	pk := c.packet(typePuback)
	pk.PacketID = id
	c.send(pk)
}

// next reads one packet.
func (c *client) next() (*mochi.Packet, error) {
	for {
		f, n, fault := nextFrame(c.buf, 1<<28)
		if fault != nil {
			return nil, fault
		}
		if n > 0 {
			pk, err := decodeServer(f, c.v5)
			c.buf = c.buf[n:]
			return pk, err
		}
		var b [4096]byte
		c.nc.SetReadDeadline(time.Now().Add(c.wait))
		k, err := c.nc.Read(b[:])
		c.buf = append(c.buf, b[:k]...)
		if err != nil && k == 0 {
			return nil, err
		}
	}
}

// decodeServer decodes what a server sends.
func decodeServer(f frame, v5 bool) (*mochi.Packet, error) {
	pk := &mochi.Packet{ProtocolVersion: level(v5)}
	if err := pk.FixedHeader.Decode(f.head); err != nil {
		return nil, err
	}
	pk.FixedHeader.Remaining = len(f.body)
	body := bytes.Clone(f.body)
	switch f.kind() {
	case typeConnack:
		return pk, pk.ConnackDecode(body)
	case typePublish:
		return pk, pk.PublishDecode(body)
	case typePuback, typePubrec, typePubcomp:
		return pk, pk.PubackDecode(body)
	case typeSuback:
		return pk, pk.SubackDecode(body)
	case typeUnsuback:
		return pk, pk.UnsubackDecode(body)
	case typePingresp:
		return pk, nil
	case typeDisconnect:
		return pk, pk.DisconnectDecode(body)
	}
	return nil, fmt.Errorf("server sent packet type %d", f.kind())
}

func (c *client) expect(kind byte) *mochi.Packet {
	c.t.Helper()
	pk, err := c.next()
	if err != nil {
		c.t.Fatalf("got %v, want packet type %d", err, kind)
	}
	if pk.FixedHeader.Type != kind {
		c.t.Fatalf("got packet type %d (%+v), want %d", pk.FixedHeader.Type, pk, kind)
	}
	return pk
}

// gone expects the end of the connection.
func (c *client) gone() {
	c.t.Helper()
	pk, err := c.next()
	if err == nil {
		c.t.Fatalf("got packet type %d, want the end", pk.FixedHeader.Type)
	}
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		c.t.Fatal("the connection stays open")
	}
	if !errors.Is(err, io.EOF) && testing.Verbose() {
		c.t.Logf("ended with %v", err)
	}
}

// eventually polls until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}
