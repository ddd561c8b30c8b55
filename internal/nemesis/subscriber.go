package nemesis

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// subscriber is an application that hears alerts with QoS 1 in a session that outlives its connections, at whichever node
// answers.
type subscriber struct {
	b  *Bench
	mu struct {
		sync.Mutex
		heard    map[alertEvent]int // how often; more than once is QoS 1's right
		sessions int                // connections
		fresh    int                // of these, how many found no session, the first left out
		lastErr  error
	}
}

// alertEvent is a transition of an alert.
type alertEvent struct {
	Device    string `json:"device"`
	Rule      string `json:"rule"`
	State     string `json:"state"`
	RaisedSeq uint64 `json:"raised_seq"`
	Seq       uint64 `json:"seq"`
}

// A subscriber pings, to notice a node that stands still.
const (
	pingEvery = time.Second
	pingMax   = 2500 * time.Millisecond
)

func newSubscriber(b *Bench) *subscriber {
	s := &subscriber{b: b}
	s.mu.heard = map[alertEvent]int{}
	return s
}

// run listens until ctx ends.
func (s *subscriber) run(ctx context.Context) {
	for node := 0; ctx.Err() == nil; node = (node + 1) % s.b.cfg.Nodes {
		err := s.listen(ctx, s.b.procs[node])
		s.mu.Lock()
		s.mu.lastErr = err
		s.mu.Unlock()
		_ = pause(ctx, 200*time.Millisecond) // the loop looks
	}
}

// listen is one connection.
func (s *subscriber) listen(ctx context.Context, node *proc) error {
	conn, kept, err := mqttConnect(node, "nemesis-alerts", false)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer func() {
		stop()
		conn.Close()
	}()
	s.mu.Lock()
	first := s.mu.sessions == 0
	s.mu.sessions++
	if !kept && !first {
		s.mu.fresh++
	}
	s.mu.Unlock()
	var out sync.Mutex // pings and acks
	send := func(b []byte) error {
		out.Lock()
		defer out.Unlock()
		return errors.Join(conn.SetWriteDeadline(time.Now().Add(pingMax)), func() error { _, err := conn.Write(b); return err }())
	}
	if !kept {
		body := append(appendText([]byte{0, 1}, "d/+/a"), 1)
		if err := send(append(appendLength([]byte{0x82}, len(body)), body...)); err != nil {
			return err
		}
	}
	alive, ended := context.WithCancel(ctx)
	defer ended()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer ended()
	wg.Go(func() {
		for pause(alive, pingEvery) == nil && send([]byte{0xC0, 0}) == nil {
		}
	})
	return s.hear(conn, send)
}

func (s *subscriber) hear(conn net.Conn, send func([]byte) error) error {
	in := bufio.NewReader(conn)
	for {
		if err := conn.SetReadDeadline(time.Now().Add(pingMax)); err != nil {
			return err
		}
		first, body, err := readPacket(in)
		if err != nil {
			return err
		}
		if first>>4 != 3 || len(body) < 4 {
			continue
		}
		n := 2 + int(body[0])<<8 + int(body[1])
		if len(body) < n+2 {
			return fmt.Errorf("PUBLISH of %d bytes with a topic of %d", len(body), n-2)
		}
		var e alertEvent
		if err := json.Unmarshal(body[n+2:], &e); err != nil {
			return err
		}
		s.mu.Lock()
		s.mu.heard[e]++
		s.mu.Unlock()
		if first&6 != 0 {
			if err := send([]byte{0x40, 2, body[n], body[n+1]}); err != nil {
				return err
			}
		}
	}
}

func readPacket(r *bufio.Reader) (first byte, body []byte, err error) {
	if first, err = r.ReadByte(); err != nil {
		return 0, nil, err
	}
	n := 0
	for shift := 0; ; shift += 7 {
		b, err := r.ReadByte()
		if err != nil || shift > 21 {
			return 0, nil, fmt.Errorf("packet length: %w", err)
		}
		n |= int(b&0x7F) << shift
		if b < 0x80 {
			break
		}
	}
	if n > 1<<20 {
		return 0, nil, fmt.Errorf("packet of %d bytes", n)
	}
	body = make([]byte, n)
	_, err = io.ReadFull(r, body)
	return first, body, err
}
