package plugins

import (
	"runtime"
	"testing"

	"github.com/dunlin-iot/dunlin"
)

// Calls in the background run beside each other, however many threads there are to stay, and what they panic with comes back.
func TestBackground(t *testing.T) {
	b := background{most: 2}
	inner := 0
	b.do(func() { b.do(func() { b.do(func() { inner++ }) }) })
	if inner != 1 {
		t.Errorf("three calls inside of each other: the innermost ran %d times", inner)
	}
	if n := len(b.mu.idle); n != 2 {
		t.Errorf("%d threads stay, want 2", n)
	}
	func() {
		defer func() {
			if reason := recover(); reason != "bad" {
				t.Errorf("a panic came back as %v", reason)
			}
		}()
		b.do(func() { panic("bad") })
	}()
	b.do(func() { inner++ })
	b.close()
	if inner != 2 {
		t.Error("after a panic nothing runs")
	}
}

// What a busy domain calls gives way, and what another domain calls does not.
func TestBusyCallsGiveWay(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux lets a thread give way by itself")
	}
	h, err := Open(Config{Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	nice := make(map[string]int32)
	h.background.do(func() { nice["background"] = threadNice(t) })
	for _, domain := range []dunlin.DomainID{"busy", "calm"} {
		f := h.gate.flow("default", domain, 0)
		if domain == "busy" {
			f.busyUntil = h.clock() + busyFor
		}
		turn := turn{flow: f}
		if err := h.gate.enter(&turn); err != nil {
			t.Fatal(err)
		}
		if turn.busy != (domain == "busy") {
			t.Errorf("domain %s: busy is %v", domain, turn.busy)
		}
		h.gate.leave(&turn, 0, 1)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if here := threadNice(t); nice["background"] <= here {
		t.Errorf("a thread in the background has the nice value %d, this one %d", nice["background"], here)
	}
}
