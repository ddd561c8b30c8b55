package load

import (
	"strings"
	"testing"
	"time"
)

// The load's alert clock rests on this: which reading lifts the mean of five over the limit, and which takes it under.
func TestFlipsAreWhereTheMeanCrosses(t *testing.T) {
	for n := range 20 {
		checkFlips(t, newDevice(Config{Prefix: "t", Flips: 10}, n))
	}
}

func checkFlips(t *testing.T, dev *device) {
	t.Helper()
	var last []float64
	above := false
	for range 1000 {
		flip := dev.next()
		temp := float64(dev.temp) / 100
		if dev.spike() {
			temp = 1000
		}
		last = append(last, temp)
		if len(last) > window {
			last = last[1:]
		}
		sum := 0.0
		for _, v := range last {
			sum += v
		}
		now := above
		if mean := sum / float64(len(last)); mean > 8 {
			now = true
		} else if mean < 7 {
			now = false
		}
		if (now != above) != flip {
			t.Fatalf("seq %d: flip is %v, but the mean's state went from %v to %v", dev.seq, flip, above, now)
		}
		above = now
	}
}

func TestPayloadIsAbout180Bytes(t *testing.T) {
	dev := newDevice(Config{Prefix: "bench-mqtt"}, 123)
	dev.next()
	p := string(dev.payload(nil, time.UnixMilli(1_790_000_000_123)))
	if len(p) < 170 || len(p) > 190 || strings.Count(p, `"n":`) != 4 {
		t.Errorf("%d bytes: %s", len(p), p)
	}
}
