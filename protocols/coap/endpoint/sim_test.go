package endpoint

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/udp/coder"
)

// TestSimulation runs a machine against clients that retransmit as RFC 7252 §4.2 says, over a network that loses, repeats
// and reorders, with answers that take up to 4 s, all from one seed. Whatever the network does:
//   - a request is handed out once, and answered to its client only after it was finished, always with the same answer;
//   - a client that got no answer heard nothing often enough, on its way there or back;
//   - when all is quiet, nothing is left of any exchange.
func TestSimulation(t *testing.T) {
	seeds := uint64(200)
	if testing.Short() {
		seeds = 20
	}
	for seed := range seeds {
		if err := simulate(seed); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

type simEvent struct {
	at  time.Duration
	seq int
	do  func()
}

type simEvents []simEvent

func (e simEvents) Len() int { return len(e) }
func (e simEvents) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e simEvents) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *simEvents) Push(x any)   { *e = append(*e, x.(simEvent)) }
func (e *simEvents) Pop() any     { n := len(*e) - 1; x := (*e)[n]; *e = (*e)[:n]; return x }

type sim struct {
	m      *Machine
	rand   *rand.Rand
	now    time.Duration
	events simEvents
	seq    int
	loss   float64
	dup    float64

	clients []*simClient
	handed  map[simKey]int // how often a request was handed out
	ended   map[simKey]bool
	lost    int
	err     error
}

type simKey struct {
	client int
	serial uint32 // the request's token
}

type simClient struct {
	id     int
	addr   Addr
	mid    uint16
	serial uint32
	// of the request in flight
	request  []byte
	tries    int
	acked    bool
	answered bool
	con      bool
	left     int // requests to come
	seen     map[uint16]bool
}

func simulate(seed uint64) error {
	s := &sim{rand: rand.New(rand.NewPCG(seed, 1)), handed: map[simKey]int{}, ended: map[simKey]bool{}}
	s.loss, s.dup = s.rand.Float64()*0.5, s.rand.Float64()*0.3
	s.m = New(Config{Seed: seed, PeersMax: 8, ExchangesMax: 64, SeenMax: 1024})
	for i := range 6 {
		c := &simClient{id: i, addr: addr(string(rune('a' + i))), mid: uint16(s.rand.Uint32()), left: 12, seen: map[uint16]bool{}}
		s.clients = append(s.clients, c)
		s.after(s.delay(), func() { s.next(c) })
	}
	for s.err == nil && s.step() {
	}
	if s.err != nil {
		return fmt.Errorf("at %v: %w", s.now, s.err)
	}
	return s.quiet()
}

func (s *sim) after(d time.Duration, do func()) {
	s.seq++
	heap.Push(&s.events, simEvent{s.now + d, s.seq, do})
}

// step does what comes next: an event, or the machine's tick.
func (s *sim) step() bool {
	next, ok := s.m.Next()
	switch {
	case len(s.events) > 0 && (!ok || s.events[0].at <= next):
		e := heap.Pop(&s.events).(simEvent)
		s.now = max(s.now, e.at)
		e.do()
	case ok:
		s.now = max(s.now+time.Millisecond, next)
	default:
		return false
	}
	s.m.Tick(s.now, 10)
	s.flush()
	return true
}

func (s *sim) delay() time.Duration {
	return time.Millisecond + time.Duration(s.rand.Int64N(int64(400*time.Millisecond)))
}

// carry takes a datagram over the network, or not, or twice.
func (s *sim) carry(b []byte, deliver func(b []byte)) {
	b = append([]byte(nil), b...)
	if s.rand.Float64() < s.loss {
		s.lost++
		return
	}
	s.after(s.delay(), func() { deliver(b) })
	if s.rand.Float64() < s.dup {
		s.after(s.delay()*10, func() { deliver(b) })
	}
}

func (s *sim) flush() {
	for _, g := range s.m.Output() {
		for _, c := range s.clients {
			if c.addr == g.To {
				s.carry(g.B, func(b []byte) { s.atClient(c, b) })
			}
		}
	}
	s.m.Sent()
}

// next lets the client send its next request.
func (s *sim) next(c *simClient) {
	if c.left == 0 {
		return
	}
	c.left--
	c.mid++
	c.serial++
	c.con = s.rand.Float64() < 0.8
	m := message.Message{Type: message.NonConfirmable, Code: codes.POST, MessageID: int32(c.mid),
		Token: binary.BigEndian.AppendUint32(nil, c.serial)}
	if c.con {
		m.Type = message.Confirmable
	}
	buf := make([]byte, 64)
	n, err := coder.DefaultCoder.Encode(m, buf)
	if err != nil {
		s.err = err
		return
	}
	c.request, c.tries, c.acked, c.answered = buf[:n], 0, false, false
	s.transmit(c, c.serial, 2*time.Second+time.Duration(s.rand.Int64N(int64(time.Second))))
}

func (s *sim) transmit(c *simClient, serial uint32, timeout time.Duration) {
	if c.serial != serial || c.acked || c.answered {
		return
	}
	if c.tries == 5 || c.tries == 1 && !c.con {
		s.after(time.Second, func() { s.next(c) }) // gave up
		return
	}
	c.tries++
	from := c.addr
	s.carry(c.request, func(b []byte) { s.atServer(c.id, &from, b) })
	s.after(timeout, func() { s.transmit(c, serial, 2*timeout) })
	if c.tries == 1 {
		// An ACK stops the retransmissions. If the answer then never comes, the client waits no longer than this.
		s.after(100*time.Second, func() {
			if c.serial == serial && c.acked && !c.answered {
				s.next(c)
			}
		})
	}
}

func (s *sim) atServer(client int, from *Addr, b []byte) {
	r := s.m.Receive(s.now, from, b, len(b))
	if r == nil {
		return
	}
	key := simKey{client, binary.BigEndian.Uint32(r.Token)}
	if s.handed[key]++; s.handed[key] > 1 {
		s.err = fmt.Errorf("request %v was handed out %d times", key, s.handed[key])
		return
	}
	ref, ok := s.m.Begin(s.now, r, false)
	if !ok {
		s.err = fmt.Errorf("no room for %v", key)
		return
	}
	work := time.Duration(0)
	if s.rand.Float64() < 0.3 {
		work = time.Duration(s.rand.Int64N(int64(4 * time.Second)))
	}
	s.after(work, func() {
		s.ended[key] = true
		s.m.Finish(s.now, ref, &Response{Code: codes.Changed, Payload: binary.BigEndian.AppendUint32(nil, key.serial*7)})
	})
}

func (s *sim) atClient(c *simClient, b []byte) {
	var r Request
	if !r.Parse(b, len(b)) {
		s.err = fmt.Errorf("malformed answer %x", b)
		return
	}
	if r.Type == message.Confirmable {
		s.carry([]byte{0x60, 0, byte(r.MID >> 8), byte(r.MID)}, func(b []byte) { s.atServer(c.id, &c.addr, b) })
	}
	if r.Type == message.Acknowledgement && r.MID == c.mid {
		c.acked = true
	}
	if r.Code == codes.Empty {
		return
	}
	serial := binary.BigEndian.Uint32(r.Token)
	key := simKey{c.id, serial}
	if !s.ended[key] {
		s.err = fmt.Errorf("%v was answered before it was finished", key)
	}
	if got := binary.BigEndian.Uint32(r.Payload); got != serial*7 {
		s.err = fmt.Errorf("%v was answered with %d, want %d", key, got, serial*7)
	}
	if serial != c.serial || c.answered {
		return
	}
	c.answered = true
	s.after(s.delay(), func() { s.next(c) })
}

// quiet checks what is left when nothing is under way any more.
func (s *sim) quiet() error {
	st := s.m.Stats()
	if st.Pending != 0 || st.Unacked != 0 || s.m.wheel.armed != 0 || len(s.m.free) != len(s.m.x) {
		return fmt.Errorf("left over: %+v, %d timers, %d of %d exchanges free", st, s.m.wheel.armed, len(s.m.free), len(s.m.x))
	}
	for i := range s.m.peers.slots {
		if p := &s.m.peers.slots[i]; p.open != 0 || p.unacked != 0 {
			return fmt.Errorf("peer %d has %d exchanges open", i, p.open)
		}
	}
	if len(s.ended) != len(s.handed) {
		return fmt.Errorf("%d requests handed out, %d finished", len(s.handed), len(s.ended))
	}
	if len(s.handed) < 6*12 && s.lost == 0 {
		return fmt.Errorf("only %d requests came through a network that lost nothing", len(s.handed))
	}
	for _, c := range s.clients {
		if c.left != 0 {
			return fmt.Errorf("client %d stopped with %d requests to go", c.id, c.left)
		}
	}
	return nil
}
