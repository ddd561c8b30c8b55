package gossip

import (
	"context"
	"fmt"
	"log"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/dunlin-iot/dunlin"
)

// streamsMax bounds the connections that others have open to this node: memberlist takes a goroutine for each before it
// has checked the key.
const streamsMax = 128

// transport is memberlist's with a bound on streams, and with connections that end when it does.
type transport struct {
	*memberlist.NetTransport
	streams chan net.Conn
	slots   chan struct{} // one token for each stream that others opened
	done    chan struct{}
	wg      sync.WaitGroup
	open    struct {
		sync.Mutex
		conns  map[*stream]struct{}
		closed bool
	}
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

// listen binds TCP and UDP to one port. For port 0 it tries again if the port that TCP was given is taken for UDP.
func listen(bind string, logger *log.Logger) (*transport, error) {
	host, port, err := splitAddr(bind)
	if err != nil {
		return nil, err
	}
	if host == "" {
		host = "0.0.0.0"
	}
	if net.ParseIP(host) == nil {
		return nil, fmt.Errorf("%w: gossip listens on addresses, not on a name (%q)", dunlin.ErrInvalid, bind)
	}
	t := &transport{streams: make(chan net.Conn), slots: make(chan struct{}, streamsMax), done: make(chan struct{})}
	t.open.conns = make(map[*stream]struct{})
	for range 10 {
		t.NetTransport, err = memberlist.NewNetTransport(&memberlist.NetTransportConfig{
			BindAddrs: []string{host}, BindPort: int(port), Logger: logger})
		if err == nil || port != 0 {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: gossip on %s: %w", dunlin.ErrUnavailable, bind, err)
	}
	t.wg.Go(t.admit)
	return t, nil
}

// admit passes on what NetTransport accepts, and hangs up on what is too many.
func (t *transport) admit() {
	for {
		select {
		case <-t.done:
			return
		case conn := <-t.NetTransport.StreamCh():
			select {
			case t.slots <- struct{}{}:
			default:
				_ = conn.Close()
				continue
			}
			s := t.track(conn, func() { <-t.slots })
			select {
			case t.streams <- s:
			case <-t.done:
				_ = s.Close()
			}
		}
	}
}

// StreamCh implements memberlist.Transport.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// DialTimeout implements memberlist.Transport.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(until(t.done), timeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return t.track(conn, func() {}), nil
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(a.Addr, timeout)
}

// Shutdown implements memberlist.Transport. admit must run until NetTransport's listeners have ended: they wait for it.
func (t *transport) Shutdown() error {
	err := t.NetTransport.Shutdown()
	t.open.Lock()
	if t.open.closed {
		t.open.Unlock()
		return err
	}
	t.open.closed = true
	all := make([]*stream, 0, len(t.open.conns))
	for s := range t.open.conns {
		all = append(all, s)
	}
	t.open.Unlock()
	close(t.done)
	for _, s := range all {
		_ = s.Close()
	}
	t.wg.Wait()
	return err
}

func (t *transport) track(conn net.Conn, after func()) *stream {
	s := &stream{Conn: conn}
	s.after = sync.OnceFunc(func() {
		t.open.Lock()
		delete(t.open.conns, s)
		t.open.Unlock()
		after()
	})
	t.open.Lock()
	closed := t.open.closed
	if !closed {
		t.open.conns[s] = struct{}{}
	}
	t.open.Unlock()
	if closed {
		_ = conn.Close()
	}
	return s
}

// stream is a connection that its transport knows of.
type stream struct {
	net.Conn
	after func()
}

// Close implements net.Conn.
func (s *stream) Close() error {
	defer s.after()
	return s.Conn.Close()
}

// until is a context that ends with a channel. memberlist hands none down to its transport.
type until <-chan struct{}

// Deadline implements context.Context.
func (until) Deadline() (time.Time, bool) { return time.Time{}, false }

// Done implements context.Context.
func (u until) Done() <-chan struct{} { return u }

// Err implements context.Context.
func (u until) Err() error {
	select {
	case <-u:
		return context.Canceled
	default:
		return nil
	}
}

// Value implements context.Context.
func (until) Value(any) any { return nil }
