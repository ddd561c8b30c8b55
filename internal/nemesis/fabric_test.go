package nemesis

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"testing"
	"time"
)

// pipeEnd is a port without a device.
type pipeEnd struct {
	in, out chan []byte
	closed  chan struct{}
}

func newPipeEnd() *pipeEnd {
	return &pipeEnd{in: make(chan []byte, 64), out: make(chan []byte, 64), closed: make(chan struct{})}
}

func (p *pipeEnd) Read(b []byte) (int, error) {
	select {
	case pkt := <-p.in:
		return copy(b, pkt), nil
	case <-p.closed:
		return 0, io.EOF
	}
}

func (p *pipeEnd) Write(b []byte) (int, error) {
	select {
	case p.out <- bytes.Clone(b):
		return len(b), nil
	case <-p.closed:
		return 0, errors.New("closed")
	}
}

func (p *pipeEnd) Close() error { close(p.closed); return nil }

func packet(to netip.Addr, tag byte) []byte {
	p := make([]byte, 21)
	p[0], p[20] = 0x45, tag
	copy(p[16:], to.AsSlice())
	return p
}

// Packets come to whom they are for, are lost in one direction only, are late but in order, and strangers' are dropped.
func TestFabric(t *testing.T) {
	x, y := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	px, py := newPipeEnd(), newPipeEnd()
	f := newFabric(1, []fabricPort{{x, px}, {y, py}})
	defer f.close()
	expect := func(p *pipeEnd, tag byte) {
		t.Helper()
		select {
		case got := <-p.out:
			if got[20] != tag {
				t.Errorf("got packet %d, want %d", got[20], tag)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("packet %d did not come", tag)
		}
	}
	px.in <- packet(netip.MustParseAddr("10.9.9.9"), 9)
	px.in <- []byte{0x60, 1}
	px.in <- packet(y, 1)
	expect(py, 1)

	f.set(0, 1, weather{loss: 1})
	px.in <- packet(y, 2)
	py.in <- packet(x, 3)
	expect(px, 3)
	for f.dropped.Load() == 0 {
		<-time.After(time.Millisecond)
	}

	f.set(0, 1, weather{delay: 30 * time.Millisecond})
	began := time.Now()
	px.in <- packet(y, 4)
	px.in <- packet(y, 5)
	expect(py, 4)
	expect(py, 5)
	if took := time.Since(began); took < 30*time.Millisecond {
		t.Errorf("a delay of 30 ms took %v", took)
	}
	f.clear()
	px.in <- packet(y, 6)
	expect(py, 6)
}
