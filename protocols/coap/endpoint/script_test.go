package endpoint

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/udp/coder"
)

// TestScripts plays the stories in testdata against a machine. Each command shows what the machine handed out and sent:
//
//	new [exchanges=N] [peer-exchanges=N] [peers=N] [seen=N]
//	recv from=a type=CON code=POST mid=1 [token=0a] [path=d/x/t] [no-response=N] [payload=x] [then=begin|repeatable|reject|reply answer=4.04]
//	raw from=a [size=N]          the datagram in hex as input
//	finish x=N code=2.04 [payload=x | bytes=N]
//	advance 1s                   ticks at every moment that the machine asks for
//	stats
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := &script{t: t}
		datadriven.RunTest(t, path, s.run)
	})
}

type script struct {
	t    *testing.T
	m    *Machine
	now  time.Duration
	refs []Ref
	out  strings.Builder
}

func (s *script) run(t *testing.T, d *datadriven.TestData) string {
	s.out.Reset()
	switch d.Cmd {
	case "new":
		s.m, s.now, s.refs = New(Config{Seed: 1, ExchangesMax: number(d, "exchanges"), PeersMax: number(d, "peers"),
			PeerExchangesMax: number(d, "peer-exchanges"), SeenMax: number(d, "seen")}), 0, nil
		return "ok"
	case "recv":
		s.receive(d, s.datagram(d), 0)
	case "raw":
		b, err := hex.DecodeString(strings.Join(strings.Fields(d.Input), ""))
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		s.receive(d, b, number(d, "size"))
	case "finish":
		s.m.Finish(s.now, s.refs[number(d, "x")-1], s.response(d))
	case "advance":
		s.advance(d)
	case "stats":
		fmt.Fprintf(&s.out, "%+v\n", s.m.Stats())
	default:
		d.Fatalf(t, "unknown command")
	}
	s.flush()
	if s.out.Len() == 0 {
		return "nothing"
	}
	return s.out.String()
}

func (s *script) receive(d *datadriven.TestData, b []byte, size int) {
	from := addr(text(d, "from"))
	r := s.m.Receive(s.now, &from, b, max(size, len(b)))
	if r == nil {
		return
	}
	fmt.Fprintf(&s.out, "request %s\n", describe(b))
	switch then := text(d, "then"); then {
	case "reply":
		s.m.Reply(r, s.response(d))
	case "reject":
		s.m.Reject(r)
	case "", "begin", "repeatable":
		ref, ok := s.m.Begin(s.now, r, then == "repeatable")
		if !ok {
			s.out.WriteString("no room\n")
			return
		}
		s.refs = append(s.refs, ref)
		fmt.Fprintf(&s.out, "x=%d\n", len(s.refs))
	}
}

func (s *script) advance(d *datadriven.TestData) {
	by, err := time.ParseDuration(d.CmdArgs[0].Key)
	if err != nil {
		d.Fatalf(s.t, "%v", err)
	}
	end := s.now + by
	for {
		next, ok := s.m.Next()
		if !ok || next > end {
			break
		}
		s.now = max(next, s.now)
		s.m.Tick(s.now, 100)
		s.flush()
		if again, ok := s.m.Next(); ok && again <= s.now {
			s.now += wheelTick // nothing was due yet in this tick
		}
	}
	s.now = max(s.now, end)
	s.m.Tick(s.now, 100)
}

func (s *script) flush() {
	for _, g := range s.m.Output() {
		fmt.Fprintf(&s.out, "%8.3fs → %s %s\n", s.now.Seconds(), name(g.To), describe(g.B))
	}
	s.m.Sent()
}

func (s *script) response(d *datadriven.TestData) *Response {
	var major, minor codes.Code
	code := text(d, "answer")
	if d.Cmd == "finish" {
		code = text(d, "code")
	}
	if _, err := fmt.Sscanf(code, "%d.%d", &major, &minor); err != nil {
		d.Fatalf(s.t, "code: %v", err)
	}
	r := &Response{Code: major<<5 | minor, Payload: []byte(text(d, "payload"))}
	if n := number(d, "bytes"); n > 0 {
		r.Payload = []byte(strings.Repeat("x", n))
	}
	return r
}

func (s *script) datagram(d *datadriven.TestData) []byte {
	types := map[string]message.Type{"CON": 0, "NON": 1, "ACK": 2, "RST": 3}
	methods := map[string]codes.Code{"GET": 1, "POST": 2, "PUT": 3, "DELETE": 4, "": 0}
	m := message.Message{Type: types[text(d, "type")], Code: methods[text(d, "code")], MessageID: int32(number(d, "mid")),
		Payload: []byte(text(d, "payload"))}
	m.Token, _ = hex.DecodeString(text(d, "token"))
	if p := text(d, "path"); p != "" {
		for seg := range strings.SplitSeq(p, "/") {
			m.Options = append(m.Options, message.Option{ID: message.URIPath, Value: []byte(seg)})
		}
	}
	if n := number(d, "no-response"); n > 0 {
		m.Options = append(m.Options, message.Option{ID: message.NoResponse, Value: []byte{byte(n)}})
	}
	return encode(s.t, m)
}

func encode(t testing.TB, m message.Message) []byte {
	t.Helper()
	b := make([]byte, 4096)
	n, err := coder.DefaultCoder.Encode(m, b)
	if err != nil {
		t.Fatalf("encode: %v", err)
	}
	return b[:n]
}

// describe renders a datagram, decoded by go-coap's own decoder.
func describe(b []byte) string {
	m := message.Message{Options: make(message.Options, 0, 64)}
	if _, err := coder.DefaultCoder.Decode(b, &m); err != nil && !errors.Is(err, message.ErrOptionsTooSmall) {
		return "undecodable: " + err.Error()
	}
	var s strings.Builder
	s.WriteString([]string{"CON", "NON", "ACK", "RST"}[m.Type])
	fmt.Fprintf(&s, " %d.%02d mid=%d", m.Code>>5, m.Code&31, m.MessageID)
	if len(m.Token) > 0 {
		fmt.Fprintf(&s, " token=%x", []byte(m.Token))
	}
	if p, err := m.Options.Path(); err == nil {
		s.WriteString(" " + p)
	}
	if n := len(m.Payload); n > 20 {
		fmt.Fprintf(&s, " %d bytes", n)
	} else if n > 0 {
		fmt.Fprintf(&s, " %q", m.Payload)
	}
	return s.String()
}

// addr maps a name such as a or b2 to an address.
func addr(name string) Addr {
	a := Addr{Port: 1000 + uint16(name[0])}
	copy(a.IP[:], "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x7f\x00\x00\x01")
	if n, err := strconv.Atoi(name[1:]); err == nil {
		a.Port += uint16(26 * n)
	}
	return a
}

func name(a Addr) string {
	n := int(a.Port) - 1000 - 'a'
	if n < 26 {
		return string(rune('a' + n))
	}
	return fmt.Sprintf("%c%d", 'a'+n%26, n/26)
}

func text(d *datadriven.TestData, key string) string {
	for _, a := range d.CmdArgs {
		if a.Key == key && len(a.Vals) > 0 {
			return a.Vals[0]
		}
	}
	return ""
}

func number(d *datadriven.TestData, key string) int {
	n, _ := strconv.Atoi(text(d, key))
	return n
}
