package plugins

import (
	"runtime"
	"testing"
	"time"

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

// What a domain with dear calls calls gives way; what others call does not, though they may have had to wait for that.
func TestDearCallsGiveWay(t *testing.T) {
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
	now := time.Second
	h.gate.clock = func() time.Duration { return now }
	for _, domain := range []dunlin.DomainID{"dear", "waits", "calm"} {
		f := h.gate.flow("default", domain, 0)
		one := turn{flow: f}
		for range 2 {
			if err := h.gate.enter(&one); err != nil {
				t.Fatal(err)
			}
			used := time.Microsecond
			if domain == "dear" {
				used = 5 * time.Millisecond
			}
			h.gate.leave(&one, used, 1)
			if domain == "waits" {
				f.waited = 3 * time.Millisecond
			}
			now += time.Second
			if busy := h.Busy("default", domain); busy != (domain != "calm") {
				t.Errorf("domain %s: busy is %v", domain, busy)
			}
		}
		if one.dear != (domain == "dear") {
			t.Errorf("domain %s: dear is %v", domain, one.dear)
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if here := threadNice(t); nice["background"] <= here {
		t.Errorf("a thread in the background has the nice value %d, this one %d", nice["background"], here)
	}
}
