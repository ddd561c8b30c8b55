package mqtt

import (
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// loop reads the sockets of many connections from one goroutine, through an epoll of its own: no goroutine and no buffer
// an idle connection, no EAGAIN a packet, and the uplinks of all that is readable go to the Ingestor in one chain. The
// epoll itself is watched by Go's poller, so a waiting loop holds no thread.
//
// Sockets are watched edge-triggered: a read that doesn't fill the buffer has emptied the socket (epoll(7)), and
// EPOLLRDHUP tells of an end of stream that such a read didn't see.
type loop struct {
	g     *Gateway
	epfd  int
	file  *os.File // of epfd, for Go's poller
	wakes int      // eventfd: rung for resumed connections and for the end

	resumed atomic.Pointer[pollWire]
	closing atomic.Bool

	mu struct {
		sync.Mutex
		wires []*pollWire // by epoll's data
		free  []int32
	}

	buf    []byte
	events [256]unix.EpollEvent
	batch  [256]*pollWire
	again  []*pollWire // have more to read than one turn allows
}

const (
	readSize  = 16 << 10
	readsMax  = 4  // of one connection in a row
	chainMax  = 64 // uplinks that wait for each other before they are ingested
	wakeIndex = -1
)

func newLoop(g *Gateway) (*loop, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	l := &loop{g: g, epfd: epfd, buf: make([]byte, readSize)}
	if l.wakes, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		unix.Close(epfd)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: wakeIndex}
	if err = unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, l.wakes, &ev); err == nil {
		err = unix.SetNonblock(epfd, true) // NewFile takes that as the wish to be polled
	}
	if err != nil {
		unix.Close(epfd)
		unix.Close(l.wakes)
		return nil, fmt.Errorf("epoll: %w", err)
	}
	l.file = os.NewFile(uintptr(epfd), "mqtt-epoll")
	return l, nil
}

// run serves the loop's connections until stop.
func (l *loop) run() error {
	raw, err := l.file.SyscallConn()
	if err != nil {
		return err
	}
	t := l.g.newTurn(0)
	var failed error
	err = raw.Read(func(uintptr) bool {
		for {
			n, err := rawEpollWait(l.epfd, l.events[:])
			if err != 0 && err != unix.EINTR {
				failed = fmt.Errorf("epoll: %w", err)
				return true
			}
			if l.closing.Load() {
				return true
			}
			busy := l.turn(t, max(n, 0))
			if n < len(l.events) && !busy && n <= 0 {
				return false // Go's poller wakes us when the epoll has something
			}
		}
	})
	if failed == nil {
		failed = err
	}
	return failed
}

// turn works off n events, what was resumed, and what was left from the turn before.
func (l *loop) turn(t *turn, n int) (busy bool) {
	l.mu.Lock()
	for i := range n {
		l.batch[i] = nil
		if at := l.events[i].Fd; at >= 0 && int(at) < len(l.mu.wires) {
			l.batch[i] = l.mu.wires[at]
		}
	}
	l.mu.Unlock()
	for i := range n {
		if w := l.batch[i]; w != nil {
			l.event(t, w, l.events[i].Events)
		} else if l.events[i].Fd == wakeIndex {
			var b [8]byte
			unix.Read(l.wakes, b[:])
		}
		l.batch[i] = nil
		if t.uplinks >= chainMax {
			t.ingest()
		}
	}
	again := l.again
	l.again = nil
	for _, w := range again {
		l.event(t, w, unix.EPOLLIN|unix.EPOLLHUP)
	}
	for w := l.resumed.Swap(nil); w != nil; {
		next := w.nextResumed
		w.nextResumed = nil
		w.resuming.Store(false)
		w.c.mu.Lock()
		t.now = l.g.now()
		w.c.inputLocked(t, nil)
		w.c.mu.Unlock()
		l.event(t, w, unix.EPOLLIN|unix.EPOLLHUP)
		w = next
		if t.uplinks >= chainMax {
			t.ingest()
		}
	}
	t.ingest()
	return len(l.again) > 0
}

// event serves one connection. EPOLLHUP stands for "read until nothing is left".
func (l *loop) event(t *turn, w *pollWire, events uint32) {
	c := w.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closed {
		return
	}
	t.now = l.g.now()
	if events&unix.EPOLLOUT != 0 && c.mu.blocked {
		t.c = c
		c.writableLocked(t)
	}
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) == 0 {
		return
	}
	if w.resuming.Load() {
		return // turn comes to it: what was read before the pause goes first, also before the end of the stream
	}
	all := events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0
	for range readsMax {
		if c.mu.closed {
			return
		}
		if c.mu.m.phase != phaseOver && (c.mu.paused || c.stalledLocked()) {
			c.mu.paused = true // resume reads on, to the end
			return
		}
		n, err := rawRead(w.fd, l.buf)
		switch {
		case err == unix.EAGAIN:
			return
		case err == unix.EINTR:
			continue
		case err != 0:
			c.eofLocked(t, os.NewSyscallError("read", err))
			return
		case n == 0:
			c.eofLocked(t, nil)
			return
		}
		c.inputLocked(t, l.buf[:n])
		if n < len(l.buf) && !all {
			return
		}
	}
	l.again = append(l.again, w)
}

// stop ends run.
func (l *loop) stop() {
	l.closing.Store(true)
	l.ring()
}

// ring wakes the loop.
func (l *loop) ring() {
	one := [8]byte{1}
	unix.Write(l.wakes, one[:])
}

// adopt takes a TCP connection over: its socket leaves Go's poller for ours.
func (l *loop) adopt(c *conn, nc *net.TCPConn) (*pollWire, error) {
	raw, err := nc.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if cerr := raw.Control(func(orig uintptr) {
		fd, err = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 0)
	}); cerr != nil {
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	w := &pollWire{c: c, l: l, fd: fd, at: -1, name: nc.RemoteAddr().String()}
	nc.Close() // the duplicate keeps the connection
	return w, nil
}

// watch begins to read. The caller holds the connection's lock.
func (l *loop) watch(w *pollWire) error {
	l.mu.Lock()
	if n := len(l.mu.free); n > 0 {
		w.at = l.mu.free[n-1]
		l.mu.free = l.mu.free[:n-1]
		l.mu.wires[w.at] = w
	} else {
		w.at = int32(len(l.mu.wires))
		l.mu.wires = append(l.mu.wires, w)
	}
	l.mu.Unlock()
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: w.at}
	if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_ADD, w.fd, &ev); err != nil {
		l.release(w)
		return fmt.Errorf("epoll: %w", err)
	}
	return nil
}

func (l *loop) release(w *pollWire) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w.at >= 0 && l.mu.wires[w.at] == w {
		l.mu.wires[w.at] = nil
		l.mu.free = append(l.mu.free, w.at)
	}
}

// pollWire is a socket of a loop. fd is used and closed under the connection's lock only: a number that was closed may
// already be another connection's.
type pollWire struct {
	c    *conn
	l    *loop
	fd   int
	at   int32
	name string

	resuming    atomic.Bool
	nextResumed *pollWire
}

func (w *pollWire) remote() string { return w.name }

func (w *pollWire) write(b []byte) (n int, err error) {
	for n < len(b) {
		k, err := rawWrite(w.fd, b[n:])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return n, errBlocked
		case err != 0:
			return n, os.NewSyscallError("write", err)
		default:
			n += k
		}
	}
	return n, nil
}

func (w *pollWire) resume() {
	if !w.resuming.CompareAndSwap(false, true) {
		return
	}
	l := w.l
	for {
		head := l.resumed.Load()
		w.nextResumed = head
		if l.resumed.CompareAndSwap(head, w) {
			if head == nil {
				l.ring()
			}
			return
		}
	}
}

func (w *pollWire) shutdown() { unix.Shutdown(w.fd, syscall.SHUT_WR) }

func (w *pollWire) close() {
	w.l.release(w)
	unix.Close(w.fd)
	w.fd = -1
}

// newLoops makes the pollers that cfg asks for; none means that every connection gets a goroutine.
func newLoops(g *Gateway) ([]*loop, error) {
	if g.cfg.Portable {
		return nil, nil
	}
	loops := make([]*loop, 0, g.cfg.Loops)
	for range g.cfg.Loops {
		l, err := newLoop(g)
		if err != nil {
			for _, l := range loops {
				l.discard()
			}
			return nil, err
		}
		loops = append(loops, l)
	}
	return loops, nil
}

// discard releases the loop's descriptors. Nobody may ring any more.
func (l *loop) discard() {
	l.file.Close() // and epfd
	unix.Close(l.wakes)
}

// wire makes the loop drive nc if it can, which begins with start.
func (l *loop) wire(c *conn, nc net.Conn) (_ wire, start func() error, err error) {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nil, nil, nil
	}
	w, err := l.adopt(c, tcp)
	if err != nil {
		return nil, nil, err
	}
	return w, func() error { return l.watch(w) }, nil
}
