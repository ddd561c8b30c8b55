package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// alpn is what both sides say inside TLS that they are about to speak.
const alpn = "dunlin-peer"

// settings makes TLS settings ours.
func settings(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.NextProtos = []string{alpn}
	c.MinVersion = tls.VersionTLS13
	c.DynamicRecordSizingDisabled = true // small records at first help browsers, not us
	return c
}

// self is this node's Hello.
func (l *Links) self(k kind) *hello {
	h := &hello{Hello: l.cfg.Self, kind: k, boot: l.boot}
	h.Cluster = *l.cluster.Load()
	return h
}

// dialling is this node's Hello on a connection that it has dialled. What it has seen means that it has no link: otherwise
// it must not dial.
func (l *Links) dialling(k kind, p *peer) (*hello, error) {
	h := l.self(k)
	if k != kindLink {
		return h, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cur.Load() != nil {
		return nil, refuse(RefusedRedundant, "the other side was faster")
	}
	if !p.decides() {
		h.seenBoot, h.seen = p.mu.boot, p.mu.seq
	}
	return h, nil
}

// connect dials, and returns the connection once both sides have agreed to it. For a link, p is the node that must be there.
func (l *Links) connect(ctx context.Context, addr string, k kind, p *peer) (*conn, error) {
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, unavailable(err)
	}
	return l.bounded(ctx, raw, func(w *wire) (*conn, error) {
		t := tls.Client(w, l.cfg.Client)
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, explain(err)
		}
		h, err := l.dialling(k, p)
		if err != nil {
			return nil, err
		}
		if _, err := t.Write(h.append(nil)); err != nil {
			return nil, explain(err)
		}
		them, err := readHello(t)
		if err != nil {
			return nil, explain(err) // TLS 1.3: only now do we see that it didn't like our certificate
		}
		if k == kindLink && them.Node != p.id && them.Node != l.cfg.Self.Node {
			return nil, fmt.Errorf("%w: node %s (%s) is there instead", dunlin.ErrUnavailable, them.Name, them.Node)
		}
		return l.agree(ctx, newConn(l, t, w), them, k, p, true)
	})
}

// bounded runs a handshake that ends with ctx at the latest.
func (l *Links) bounded(ctx context.Context, raw net.Conn, shake func(w *wire) (*conn, error)) (*conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) }) // a past one ends reads and writes
	c, err := shake(&wire{Conn: raw})
	if !stop() {
		err = errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

// agree decides about a connection whose Hellos have been exchanged, and tells the other side if it is a no.
func (l *Links) agree(ctx context.Context, c *conn, them *hello, k kind, p *peer, dialled bool) (*conn, error) {
	version, err := l.judge(ctx, c.tls, them, k, p)
	var r *Refusal
	if errors.As(err, &r) {
		l.m.refused(r.Reason)
		if theirs := c.sayNo(r); theirs != nil {
			return nil, theirs
		}
	}
	if err != nil {
		return nil, err
	}
	c.them, c.kind, c.p, c.dialled, c.version = them, k, p, dialled, version
	c.since = l.cfg.now()
	return c, nil
}

func (l *Links) judge(ctx context.Context, t *tls.Conn, them *hello, k kind, p *peer) (uint32, error) {
	cert, _, err := l.cfg.PeerOf(t.ConnectionState())
	if err != nil {
		return 0, refuse(RefusedCertificate, "your certificate: %s", err)
	}
	version, r := greet(l.self(k), them, k, cert)
	if r != nil {
		return 0, r
	}
	l.mu.Lock()
	left := l.mu.left[them.Node]
	l.mu.Unlock()
	if left {
		return 0, l.left(them.Node)
	}
	if p == nil {
		return 0, refuse(RefusedBusy, "node %s knows %d nodes already", l.cfg.Self.Name, peersMax)
	}
	if k == kindLink {
		return version, p.twin(ctx, them)
	}
	return version, nil
}

// twin makes sure that a node which says that it lives another life than the one we are linked to is not a second process
// with the same data: then the first one still speaks.
func (p *peer) twin(ctx context.Context, them *hello) error {
	c := p.cur.Load()
	if c == nil || c.them.boot == them.boot {
		return nil
	}
	ping := p.l.cfg.DeadAfter * pingTicks / deadTicks
	var heard uint64
	for i, d := range []time.Duration{ping, 2 * ping} { // what was under way arrives in the first
		t := time.NewTimer(d)
		select {
		case <-c.done:
			t.Stop()
			return nil
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		case <-t.C:
		}
		if i == 0 {
			heard = c.wire.received.Load()
		}
	}
	if c.wire.received.Load() == heard {
		return nil
	}
	return refuse(RefusedTwin, "node %s (%s) is connected already, from %s: two processes run with the same id, one data folder is a copy of the other; stop one of the two and start it with an empty data folder",
		them.Name, them.Node, c.wire.RemoteAddr())
}

// sayNo tells the other side why not, and returns what it has to say, if that is a no, too.
func (c *conn) sayNo(r *Refusal) *Refusal {
	if _, err := c.tls.Write(appendRefuse(nil, r)); err != nil {
		return nil
	}
	_ = c.tls.CloseWrite() // without it closing could take the text away from under the other side
	time.AfterFunc(c.l.cfg.DeadAfter, func() { _ = c.wire.SetDeadline(time.Unix(1, 0)) })
	var theirs *Refusal
	head := make([]byte, frameHead)
	if _, err := io.ReadFull(c.tls, head); err == nil && head[3] == frameRefuse {
		body := make([]byte, min(int(head[0])|int(head[1])<<8, 1+refuseMax))
		if _, err := io.ReadFull(c.tls, body); err == nil {
			theirs, _ = parseRefuse(body)
		}
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(c.tls, bufferBytes))
	return theirs
}

// accept takes connections until the listener is closed.
func (l *Links) accept(ctx context.Context, wg *sync.WaitGroup) {
	for ctx.Err() == nil {
		raw, err := l.listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			l.note("accept", slog.LevelError, "can't take connections from nodes", "", err)
			t := time.NewTimer(l.cfg.RetryMin) // out of files: they come back
			select {
			case <-t.C:
			case <-ctx.Done():
			}
			t.Stop()
			continue
		}
		host, _, _ := net.SplitHostPort(raw.RemoteAddr().String())
		if !l.admit(host) {
			raw.Close()
			continue
		}
		wg.Go(func() { l.incoming(ctx, raw, host) })
	}
}

// admit bounds the connections that have not said who they are, and the share of one host in them.
func (l *Links) admit(host string) bool {
	select {
	case l.slots <- struct{}{}:
	default:
		l.m.refused(RefusedBusy)
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.hosts[host] >= max(l.cfg.HandshakesMax/4, 1) {
		<-l.slots
		l.m.refused(RefusedBusy)
		return false
	}
	l.mu.hosts[host]++
	return true
}

func (l *Links) admitted(host string) {
	<-l.slots
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.hosts[host]--; l.mu.hosts[host] == 0 {
		delete(l.mu.hosts, host)
	}
}

// incoming is the life of a connection that another node dialled.
func (l *Links) incoming(ctx context.Context, raw net.Conn, host string) {
	limited, cancel := context.WithTimeoutCause(ctx, l.cfg.DialTimeout, fmt.Errorf("%w: said nothing for %s", dunlin.ErrUnavailable, l.cfg.DialTimeout))
	c, err := l.bounded(limited, raw, func(w *wire) (*conn, error) { return l.greeted(limited, w) })
	cancel()
	l.admitted(host)
	if err != nil {
		var r *Refusal
		level := slog.LevelInfo
		if errors.As(err, &r) && r.Reason.lasting() && r.Reason != RefusedLeft {
			level = slog.LevelError
		}
		l.note(host, level, "turned a connection away", raw.RemoteAddr().String(), err)
		return
	}
	if c.kind == kindCall {
		defer l.guests.Add(-1)
		if l.guests.Add(1) > guestsMax {
			c.refuse(refuse(RefusedBusy, "node %s serves %d connections for one call already", l.cfg.Self.Name, guestsMax))
		}
	} else if c.p.decides() {
		_ = c.p.offer(c) // a no is on its way to the other side
	}
	l.drive(ctx, c)
}

// greeted makes a connection of one that was accepted.
func (l *Links) greeted(ctx context.Context, w *wire) (*conn, error) {
	t := tls.Server(w, l.cfg.Server)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, explain(err)
	}
	them, err := readHello(t)
	if err != nil {
		return nil, explain(err)
	}
	p := l.guest
	if them.kind == kindLink && them.Node != l.cfg.Self.Node {
		p = l.peer(them.Node)
	}
	if _, err := t.Write(l.self(them.kind).append(nil)); err != nil {
		return nil, err
	}
	c, err := l.agree(ctx, newConn(l, t, w), them, them.kind, p, false)
	if err != nil {
		return nil, fmt.Errorf("node %s (%s): %w", them.Name, them.Node, err)
	}
	return c, nil
}

// note logs what happened with an address, unless it is what happened there last.
func (l *Links) note(key string, level slog.Level, msg, addr string, err error) {
	now := l.cfg.now()
	text := gist(err)
	l.mu.Lock()
	old, ok := l.mu.notes[key]
	if ok && old.text == text && now-old.at < noteAgain {
		l.mu.Unlock()
		return
	}
	if !ok && len(l.mu.notes) >= notesMax {
		clear(l.mu.notes)
	}
	l.mu.notes[key] = note{text, now}
	l.mu.Unlock()
	l.log(level, msg, slog.String("addr", addr), slog.Any("reason", err))
}

// gist is an error without its numbers: another port or another moment is no news.
func gist(err error) string {
	return strings.Map(func(r rune) rune {
		if '0' <= r && r <= '9' {
			return -1
		}
		return r
	}, err.Error())
}
