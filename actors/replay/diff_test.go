package replay

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
)

// comparison reads the alerts of two sides, such as "10-20 30- 40!50-60", in minutes: raised, cleared, "!" for a severity that
// rises at that moment.
func comparison(t *testing.T, recordedAlerts, candidateAlerts string) *diff {
	t.Helper()
	d := &diff{}
	for side, text := range []string{recordedAlerts, candidateAlerts} {
		for _, word := range strings.Fields(text) {
			from, to, ok := strings.Cut(word, "-")
			from, worse, rises := strings.Cut(from, "!")
			minutes := func(s string) dunlin.Time {
				n, err := strconv.Atoi(s)
				if err != nil {
					t.Fatalf("%q: %v", word, err)
				}
				return dunlin.Time(n) * 60e6
			}
			a := dunlin.Alert{Rule: "r", Severity: dunlin.Warning, State: dunlin.AlertRaised, RaisedAt: minutes(from), RaisedSeq: uint64(minutes(from))}
			a.At, a.Seq = a.RaisedAt, a.RaisedSeq
			d.add(side, &a)
			if rises {
				a.Severity, a.At, a.Seq = dunlin.Critical, minutes(worse), uint64(minutes(worse))
				d.add(side, &a)
			}
			if !ok || to == "" {
				continue
			}
			a.State, a.At, a.ClearedAt = dunlin.AlertCleared, minutes(to), minutes(to)
			d.add(side, &a)
		}
	}
	return d
}

// testdata/diff.txt has alerts of both sides, and what is said of them.
func TestDiff(t *testing.T) {
	f, err := os.Open("testdata/diff.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		parts := strings.Split(line, "|")
		d := comparison(t, parts[0], parts[1])
		p := &period{since: 100 * 60e6, until: 1000 * 60e6, near: 15 * 60e6}
		d.settle(p, 0, true, dunlin.DeviceKey{Device: "d"})
		var got []string
		for _, x := range d.list {
			s := x.Kind
			if x.Recorded != nil {
				s += fmt.Sprintf(" %d", x.Recorded.RaisedAt/60e6)
			}
			if x.Candidate != nil {
				s += fmt.Sprintf(">%d", x.Candidate.RaisedAt/60e6)
			}
			got = append(got, s)
		}
		if d.counts.Same > 0 {
			got = append(got, fmt.Sprintf("%d same", d.counts.Same))
		}
		if want := strings.TrimSpace(parts[2]); strings.Join(got, ", ") != want {
			t.Errorf("%s\n got %s\nwant %s", line, strings.Join(got, ", "), want)
		}
		if c := d.counts; c.Recorded > c.Same+c.Moved+c.Removed || c.Candidate > c.Same+c.Moved+c.Added {
			t.Errorf("%s: counts %+v", line, c)
		}
	}
}

// What is said does not depend on how often one looks, nothing is counted twice or lost, and equal sides are equal.
func TestDiffLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type event struct {
			side int
			a    dunlin.Alert
		}
		var events []event
		open := [2][2]*dunlin.Alert{}
		now := dunlin.Time(1000e6)
		raised := [2]uint64{}
		for range rapid.IntRange(0, 60).Draw(t, "events") {
			now += dunlin.Time(rapid.IntRange(1, 20*60).Draw(t, "seconds")) * 1e6
			side, rule := rapid.IntRange(0, 1).Draw(t, "side"), rapid.IntRange(0, 1).Draw(t, "rule")
			if o := open[side][rule]; o != nil {
				a := *o
				a.State, a.At, a.ClearedAt = dunlin.AlertCleared, now, now
				events, open[side][rule] = append(events, event{side, a}), nil
				continue
			}
			a := dunlin.Alert{Rule: fmt.Sprint(rule), Severity: dunlin.Major, State: dunlin.AlertRaised, RaisedAt: now, At: now, RaisedSeq: uint64(now), Seq: uint64(now)}
			open[side][rule] = &a
			raised[side]++
			events = append(events, event{side, a})
		}
		p := &period{until: now + 1, near: 15 * 60e6}
		end, often := &diff{}, &diff{}
		for _, e := range events {
			end.add(e.side, &e.a)
			often.add(e.side, &e.a)
			often.settle(p, e.a.At-1, false, dunlin.DeviceKey{})
		}
		end.settle(p, 0, true, dunlin.DeviceKey{})
		often.settle(p, 0, true, dunlin.DeviceKey{})
		for _, d := range []*diff{end, often} {
			c := d.counts
			if c.Recorded != raised[recorded] || c.Candidate != raised[candidate] || c.Recorded != c.Same+c.Moved+c.Removed || c.Candidate != c.Same+c.Moved+c.Added {
				t.Fatalf("raised %v, counts %+v", raised, c)
			}
			if len(d.conditions) != 0 {
				t.Fatalf("%d conditions are left", len(d.conditions))
			}
		}
		both := &diff{}
		for _, e := range events {
			if e.side == recorded {
				both.add(recorded, &e.a)
				both.add(candidate, &e.a)
			}
		}
		both.settle(p, 0, true, dunlin.DeviceKey{})
		if c := both.counts; c.Same != raised[recorded] || differ(&c) != 0 {
			t.Fatalf("equal sides: %+v", c)
		}
	})
}
