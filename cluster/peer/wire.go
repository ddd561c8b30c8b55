package peer

import (
	"net"
	"sync"
	"sync/atomic"
)

const wireBytes = 64 << 10

// wire is the connection under TLS. TLS writes each of its records of 16 KiB by itself; wire gathers them. And it counts, so
// that a long frame on a slow line shows as life.
type wire struct {
	net.Conn
	received, sent atomic.Uint64
	writing        atomic.Bool

	// The lock is held while writing: TLS answers a key update from the reading goroutine.
	mu struct {
		sync.Mutex
		gather bool
		buf    []byte
	}
}

func (w *wire) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	w.received.Add(uint64(n))
	return n, err
}

func (w *wire) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.mu.gather {
		return w.write(b)
	}
	w.mu.buf = append(w.mu.buf, b...)
	if len(w.mu.buf) < wireBytes {
		return len(b), nil
	}
	return len(b), w.flushLocked()
}

func (w *wire) write(b []byte) (int, error) {
	w.writing.Store(true)
	n, err := w.Conn.Write(b)
	w.writing.Store(false)
	w.sent.Add(uint64(n))
	return n, err
}

// gather makes Write wait for flush.
func (w *wire) gather() {
	w.mu.Lock()
	w.mu.gather = true
	w.mu.Unlock()
}

func (w *wire) flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.flushLocked()
}

func (w *wire) flushLocked() error {
	if len(w.mu.buf) == 0 {
		return nil
	}
	_, err := w.write(w.mu.buf)
	w.mu.buf = w.mu.buf[:0]
	return err
}
