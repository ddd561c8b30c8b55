package store

import (
	"bytes"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
)

// Names sort as themselves, come back, and none is a prefix of another: no device's rows lie among another's.
func TestNamesInKeys(t *testing.T) {
	gen := rapid.StringOf(rapid.RuneFrom([]rune{0, 1, 'a', 'b', 0xff}))
	rapid.Check(t, func(t *rapid.T) {
		a, b := gen.Draw(t, "a"), gen.Draw(t, "b")
		ka, kb := appendName(nil, a), appendName(nil, b)
		if got, want := bytes.Compare(ka, kb), strings.Compare(a, b); got != want {
			t.Fatalf("keys of %q and %q compare %d, the names %d", a, b, got, want)
		}
		if a != b && bytes.HasPrefix(ka, kb) {
			t.Fatalf("key of %q begins with that of %q", a, b)
		}
		back, rest, err := cutName(append(ka, "rest"...))
		if err != nil || back != a || string(rest) != "rest" {
			t.Fatalf("%q came back as %q, rest %q, %v", a, back, rest, err)
		}
	})
}

func TestTimesInKeys(t *testing.T) {
	times := []dunlin.Time{math.MinInt64, -1, 0, 1, fleetStart, math.MaxInt64}
	for i, a := range times {
		if got, _, err := cutTime(appendTime(nil, a)); err != nil || got != a {
			t.Errorf("%d came back as %d, %v", a, got, err)
		}
		for j, b := range times {
			if got, want := bytes.Compare(appendTime(nil, a), appendTime(nil, b)), sign(i-j); got != want {
				t.Errorf("times %d and %d compare %d", a, b, got)
			}
			if got, want := bytes.Compare(appendTimeDown(nil, a), appendTimeDown(nil, b)), sign(j-i); got != want {
				t.Errorf("times %d and %d compare %d downwards", a, b, got)
			}
		}
	}
}

func sign(i int) int { return min(max(i, -1), 1) }

func FuzzKeys(f *testing.F) {
	f.Add(appendTimer(nil, 1, 2, dunlin.DeviceKey{Tenant: "t", Device: "d"}, "n"))
	f.Add(appendName(nil, "a\x00b"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, _ = cutName(b)
		_, _ = cutIndex(b)
		if len(b) >= keyHead {
			_, _, _ = cutTimer(b)
			_, _ = cutSegmentInfo(b, b)
		}
		_, _, _ = cutAlert(b)
		_, _ = cutLetters(nil, b)
		_, _ = cutApplied(nil, b)
		for _, table := range []byte{tabDevice, tabReadings, tabDead, tabApplied} {
			f := fold{merge: mergeOf(table), ops: [][]byte{b, b}}
			_, _ = f.finish(true)
		}
		_, _ = decodeState(new(dunlin.DeviceState), b)
		_, _ = cutLogValue(b)
		_, _ = parseMoment(string(b))
	})
}
