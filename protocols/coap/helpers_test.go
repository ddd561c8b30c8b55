package coap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/udp/coder"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/payload"
)

const testNow = dunlin.Time(1_700_000_000_000_000)

// rooms are fakes of what is behind the door.
type rooms struct {
	mu      sync.Mutex
	uplinks []dunlin.Uplink          // as they were when they came
	receipt func(id string) *receipt // by device; nil: committed
	held    []*dunlin.Uplink         // waiting for commit
	twins   map[dunlin.DeviceID]*dunlin.Twin
	twinErr error
	secrets map[string]dunlin.Principal // "name:secret"
	logins  atomic.Int64
	stall   chan struct{} // not nil: Authenticate and Twin wait for it
}

type receipt struct {
	dunlin.Receipt
	hold bool
}

func (r *rooms) Ingest(first *dunlin.Uplink) {
	for u := first; u != nil; {
		next := u.Next // u is its gateway's again once it is done
		var rc receipt
		if r.receipt != nil {
			if p := r.receipt(string(u.Device)); p != nil {
				rc = *p
			}
		}
		r.mu.Lock()
		r.uplinks = append(r.uplinks, *u)
		if rc.hold {
			r.held = append(r.held, u)
		}
		r.mu.Unlock()
		if !rc.hold {
			u.Waiter.Done(u, rc.Receipt)
		}
		u = next
	}
}

// commit answers the uplinks that were held.
func (r *rooms) commit() int {
	r.mu.Lock()
	held := r.held
	r.held = nil
	r.mu.Unlock()
	for _, u := range held {
		u.Waiter.Done(u, dunlin.Receipt{Seq: 1})
	}
	return len(held)
}

func (r *rooms) got() []dunlin.Uplink {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]dunlin.Uplink(nil), r.uplinks...)
}

// set changes what the rooms do while they are in use.
func (r *rooms) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

func (r *rooms) wait(ctx context.Context) error {
	r.mu.Lock()
	stall := r.stall
	r.mu.Unlock()
	if stall == nil {
		return nil
	}
	select {
	case <-stall:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *rooms) Authenticate(ctx context.Context, a dunlin.LoginAttempt) (dunlin.Principal, error) {
	r.logins.Add(1)
	if err := r.wait(ctx); err != nil {
		return dunlin.Principal{}, err
	}
	if p, ok := r.secrets[a.ID+":"+string(a.Secret)]; ok {
		return p, nil
	}
	return dunlin.Principal{}, fmt.Errorf("%s: %w", a.ID, dunlin.ErrUnauthenticated)
}

func (r *rooms) Twin(ctx context.Context, key dunlin.DeviceKey) (*dunlin.Twin, error) {
	if err := r.wait(ctx); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.twinErr != nil {
		return nil, r.twinErr
	}
	if tw := r.twins[key.Device]; tw != nil {
		return tw, nil
	}
	return nil, fmt.Errorf("%s: %w", key, dunlin.ErrNotFound)
}

func (r *rooms) Readings(context.Context, dunlin.ReadingsQuery) (*dunlin.ReadingsPage, error) {
	return nil, errors.ErrUnsupported
}

func (r *rooms) Alerts(context.Context, dunlin.AlertsQuery) (*dunlin.AlertsPage, error) {
	return nil, errors.ErrUnsupported
}

func (r *rooms) DeadLetters(context.Context, dunlin.DeadLettersQuery) (*dunlin.DeadLettersPage, error) {
	return nil, errors.ErrUnsupported
}

func depsOf(r *rooms) Deps {
	return Deps{Ingestor: r, Inspector: r, Auth: r, Decoder: payload.NewDecoder()}
}

// serve starts a gateway and stops it at the end of the test. TestMain checks that nothing of it is left.
func serve(t *testing.T, cfg Config, r *rooms) *Gateway {
	t.Helper()
	g, stop := serveUntil(t, cfg, r)
	t.Cleanup(stop)
	return g
}

func serveUntil(t *testing.T, cfg Config, r *rooms) (*Gateway, func()) {
	t.Helper()
	if cfg.Addr == "" {
		cfg.Addr = "127.0.0.1:0"
	}
	if cfg.Clock == nil {
		cfg.Clock = func() dunlin.Time { return testNow }
	}
	g, err := New(cfg, depsOf(r))
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- g.Serve(ctx) }()
	return g, func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
}

// client is a socket that speaks raw datagrams.
type client struct {
	t    testing.TB
	conn net.Conn
	mid  uint16
}

func dial(t testing.TB, g *Gateway) *client { return dialAddr(t, g.Addr().String()) }

func dialAddr(t testing.TB, addr string) *client {
	t.Helper()
	conn, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &client{t: t, conn: conn, mid: 100}
}

func (c *client) write(b []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) read(within time.Duration) ([]byte, bool) {
	c.t.Helper()
	b := make([]byte, 70_000)
	_ = c.conn.SetReadDeadline(time.Now().Add(within))
	n, err := c.conn.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, false
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return b[:n], true
}

// must reads the next datagram.
func (c *client) must() message.Message {
	c.t.Helper()
	b, ok := c.read(5 * time.Second)
	if !ok {
		c.t.Fatal("no datagram came")
	}
	return decode(c.t, b)
}

// quiet checks that the gateway has sent nothing: the next to come is the Reset to a ping.
func (c *client) quiet() {
	c.t.Helper()
	c.mid++
	c.write([]byte{0x40, 0, byte(c.mid >> 8), byte(c.mid)})
	if m := c.must(); m.Type != message.Reset || m.MessageID != int32(c.mid) {
		c.t.Errorf("got %s, want nothing", show(m))
	}
}

// ask sends a request, confirmable unless typ says otherwise, and returns the answer.
func (c *client) ask(m message.Message) message.Message {
	c.t.Helper()
	c.mid++
	m.MessageID = int32(c.mid)
	if m.Token == nil {
		m.Token = []byte{0xca, 0xfe}
	}
	c.write(encode(c.t, m))
	a := c.must()
	if !bytes.Equal(a.Token, m.Token) {
		c.t.Errorf("token %x, want %x", a.Token, m.Token)
	}
	if m.Type == message.Confirmable && (a.Type != message.Acknowledgement || a.MessageID != m.MessageID) ||
		m.Type == message.NonConfirmable && a.Type != message.NonConfirmable {
		c.t.Errorf("%s was answered by %s", show(m), show(a))
	}
	return a
}

// request builds a request: the target is a path, with queries behind a question mark.
func request(code codes.Code, target string, opts ...message.Option) message.Message {
	path, query, _ := strings.Cut(target, "?")
	var all message.Options
	for seg := range strings.SplitSeq(path, "/") {
		all = all.Add(message.Option{ID: message.URIPath, Value: []byte(seg)})
	}
	for q := range strings.SplitSeq(query, "&") {
		if q != "" {
			all = all.Add(message.Option{ID: message.URIQuery, Value: []byte(q)})
		}
	}
	for _, o := range opts {
		all = all.Add(o)
	}
	return message.Message{Code: code, Options: all}
}

func post(target, body string, opts ...message.Option) message.Message {
	m := request(codes.POST, target, opts...)
	m.Payload = []byte(body)
	return m
}

func get(target string, opts ...message.Option) message.Message {
	return request(codes.GET, target, opts...)
}

func option(id message.OptionID, value ...byte) message.Option {
	return message.Option{ID: id, Value: value}
}

func encode(t testing.TB, m message.Message) []byte {
	b := make([]byte, 70_000)
	n, err := coder.DefaultCoder.Encode(m, b)
	if err != nil {
		if t == nil {
			panic(err)
		}
		t.Fatalf("encode: %v", err)
	}
	return b[:n:n]
}

func decode(t testing.TB, b []byte) message.Message {
	t.Helper()
	m := message.Message{Options: make(message.Options, 0, 64)}
	if _, err := coder.DefaultCoder.Decode(b, &m); err != nil {
		t.Fatalf("decode %x: %v", b, err)
	}
	return m
}

// show renders a message for a failure: "ACK 2.04 Max-Age=1 …".
func show(m message.Message) string {
	s := fmt.Sprintf("%v %d.%02d", m.Type, m.Code>>5, m.Code&31)
	for _, o := range m.Options {
		s += fmt.Sprintf(" %v=%x", o.ID, o.Value)
	}
	if len(m.Payload) > 0 {
		s += fmt.Sprintf(" %q", m.Payload[:min(len(m.Payload), 100)])
	}
	return s
}

func uintOption(m message.Message, id message.OptionID) int {
	for _, o := range m.Options {
		if o.ID == id {
			return int(number(o.Value))
		}
	}
	return -1
}

func code(class, detail codes.Code) codes.Code { return class<<5 | detail }
