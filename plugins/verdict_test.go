package plugins

import (
	"fmt"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// What makes a version bad: several devices, a share of the inputs, within a minute.
func TestVerdict(t *testing.T) {
	const second = dunlin.Time(1e6)
	for _, c := range []struct {
		name           string
		devices        int           // that fail, in turn
		failures, good int           // failed inputs, and good ones between two
		every          time.Duration // between two failures
		bad            bool
	}{
		{"five devices", 5, 5, 2, time.Second, true},
		{"four devices, many times", 4, 500, 0, time.Second, false},
		{"one in ten, quickly", 20, 20, 9, time.Second, true},
		{"one in a hundred", 100, 1000, 99, 10 * time.Millisecond, false},
		{"one in nineteen", 100, 100, 18, 100 * time.Millisecond, true},
		{"five devices in ten minutes", 5, 50, 0, 2 * time.Minute, false},
		{"one a minute of many", 50, 50, 10, time.Minute, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := &verdict{}
			now, bad := dunlin.Time(1e15), ""
			v.inputs.Add(50)
			for i := range c.failures {
				now = now.Add(c.every)
				v.inputs.Add(int64(1 + c.good))
				key := dunlin.DeviceKey{Tenant: "t", Device: dunlin.DeviceID(fmt.Sprint(i % c.devices))}
				if reason := v.fail(key, 1, now, 5); reason != "" {
					bad = reason
					break
				}
			}
			if (bad != "") != c.bad {
				t.Errorf("verdict %q", bad)
			}
			if got := v.refused(now); (got != "") != c.bad || v.refused(now+61*second) != "" {
				t.Errorf("refused: %q", got)
			}
		})
	}
}

// It is said once, however many calls fail while the version is refused; when it fails again after that, once more.
func TestVerdictIsSaidOnce(t *testing.T) {
	v := &verdict{}
	said := 0
	now := dunlin.Time(1e15)
	for i := range 130 { // a second each
		now = now.Add(time.Second)
		v.inputs.Add(1)
		if v.fail(dunlin.DeviceKey{Device: dunlin.DeviceID(fmt.Sprint(i % 9))}, 1, now, 5) != "" {
			said++
		}
	}
	if said != 3 {
		t.Errorf("said %d times in 130 seconds", said)
	}
}

// The window forgets: failures beside many inputs of the past count for what they are now.
func TestVerdictWindowMoves(t *testing.T) {
	var tr trial
	tr.devices = 3
	now := dunlin.Time(1e15)
	if _, bad := tr.fail(dunlin.DeviceKey{Device: "a"}, 1, 1_000_000, now); bad {
		t.Error("bad at the first failure")
	}
	now = now.Add(5 * time.Minute)
	for i, want := range []bool{false, false, true} { // ten inputs a minute since
		_, bad := tr.fail(dunlin.DeviceKey{Device: dunlin.DeviceID(fmt.Sprint("b", i))}, 1, 1_000_050, now)
		if bad != want {
			t.Errorf("failure %d: %v", i, bad)
		}
	}
	if now = now - dunlin.Time(1e9); tr.devices != 3 {
		t.Error("devices are forgotten")
	}
	if _, bad := tr.fail(dunlin.DeviceKey{Device: "c"}, 1, 1_000_051, now); bad {
		t.Error("a clock that goes back begins a new window")
	}
}
