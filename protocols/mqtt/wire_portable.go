package mqtt

import (
	"io"
	"net"
)

// portableWire drives any net.Conn with a goroutine that reads and, while there is something to send, one that writes.
// TLS and WebSocket connections, tests over net.Pipe and systems without a poller go this way.
type portableWire struct {
	c       *conn
	nc      net.Conn
	go_     chan struct{} // cap 1: resume
	writing bool
	over    bool // shutdown or close was asked for
	name    string
}

// idleRead is the size of the buffer that waits with an idle connection. One that fills it gets a pooled buffer while
// more keeps coming.
const idleRead = 512

func newPortableWire(c *conn, nc net.Conn) *portableWire {
	return &portableWire{c: c, nc: nc, go_: make(chan struct{}, 1), name: nc.RemoteAddr().String()}
}

func (w *portableWire) remote() string { return w.name }

func (w *portableWire) resume() {
	select {
	case w.go_ <- struct{}{}:
	default:
	}
}

// write leaves everything to the writer: a net.Conn can't be asked not to block.
func (w *portableWire) write([]byte) (int, error) {
	if !w.writing {
		w.writing = true
		w.c.g.work.Go(w.writer)
	}
	return 0, errBlocked
}

func (w *portableWire) writer() {
	c := w.c
	t := c.g.newTurn(c.g.now())
	var spare []byte
	for {
		c.mu.Lock()
		b := c.mu.out
		if len(b) == 0 || c.mu.closed {
			w.writing, c.mu.blocked = false, false
			if !c.mu.closed {
				t.now = c.g.now()
				c.sentLocked(t)
			}
			c.mu.Unlock()
			t.ingest()
			return
		}
		c.mu.out = spare[:0]
		c.mu.stuck = c.g.now()
		c.mu.Unlock()
		_, err := w.nc.Write(b)
		spare = b
		if err != nil {
			c.mu.Lock()
			t.now = c.g.now()
			w.writing, t.c = false, c
			c.brokenLocked(t, err)
			c.mu.Unlock()
			t.ingest()
			return
		}
	}
}

// shutdown ends our direction if the connection can do that by itself, and everything if not.
func (w *portableWire) shutdown() {
	if half, ok := w.nc.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
		return
	}
	w.nc.Close()
}

func (w *portableWire) close() {
	w.over = true
	w.nc.Close()
	w.resume()
}

// reader is the connection's reader.
func (w *portableWire) reader() {
	c := w.c
	t := c.g.newTurn(0)
	idle := make([]byte, idleRead)
	buf := idle
	var big *[]byte
	for {
		n, err := w.nc.Read(buf)
		t.now = c.g.now()
		c.mu.Lock()
		if n > 0 {
			c.inputLocked(t, buf[:n])
		}
		for c.mu.paused || c.stalledLocked() && c.mu.m.phase != phaseOver {
			c.mu.paused = true
			c.mu.Unlock()
			t.ingest()
			<-w.go_
			t.now = c.g.now()
			c.mu.Lock()
			if c.mu.m.phase == phaseOver {
				break
			}
			if !c.mu.paused {
				c.inputLocked(t, nil)
			}
		}
		if err != nil {
			if err != io.EOF && w.over {
				err = io.EOF
			}
			c.eofLocked(t, err)
		}
		closed := c.mu.closed
		c.mu.Unlock()
		t.ingest()
		if closed {
			break
		}
		switch {
		case n == len(buf) && big == nil:
			big = c.g.buffers.Get().(*[]byte)
			buf = *big
		case n < idleRead && big != nil:
			c.g.buffers.Put(big)
			big, buf = nil, idle
		}
	}
	if big != nil {
		c.g.buffers.Put(big)
	}
}
