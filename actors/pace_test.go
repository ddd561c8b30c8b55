package actors

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
)

// TestPace plays scripts to a pace: at each line, time in milliseconds, uplinks that wait, uplinks in flight, and a word if a
// round is being played. "load" plays a whole stream of uplinks against a commit of given length and tells what the pace
// made of it.
func TestPace(t *testing.T) {
	datadriven.Walk(t, "testdata/pace", func(t *testing.T, path string) {
		p := makePace(4 * time.Millisecond)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var out strings.Builder
			switch d.Cmd {
			case "pace":
				var window int
				d.ScanArgs(t, "window", &window)
				p = makePace(time.Duration(window) * time.Millisecond)
			case "play":
				for line := range strings.Lines(d.Input) {
					f := strings.Fields(line)
					now, _ := strconv.ParseFloat(f[0], 64)
					waiting, _ := strconv.Atoi(f[1])
					uplinks, _ := strconv.Atoi(f[2])
					at := time.Duration(now * 1e6)
					fl := flight{turns: int64(min(uplinks, 1)), uplinks: int64(uplinks), round: len(f) > 3}
					start, wait := p.next(at, int64(waiting), fl)
					switch {
					case start:
						fmt.Fprintf(&out, "%sms: %d start\n", f[0], waiting)
						p.began(at, int64(waiting))
					case wait == hold:
						fmt.Fprintf(&out, "%sms: hold\n", f[0])
					default:
						fmt.Fprintf(&out, "%sms: wait %v\n", f[0], wait)
					}
				}
			case "load":
				var rate, clients int
				commit, window := "1.5ms", 4
				d.MaybeScanArgs(t, "rate", &rate)
				d.MaybeScanArgs(t, "clients", &clients)
				d.MaybeScanArgs(t, "commit", &commit)
				d.MaybeScanArgs(t, "window", &window)
				c, _ := time.ParseDuration(commit)
				out.WriteString(load(rate, clients, c, time.Duration(window)*time.Millisecond))
			}
			return out.String()
		})
	})
}

// simRound is a round at the simulated disk.
type simRound struct {
	n    int
	back time.Duration
}

// load simulates 2 seconds: an open stream of uplinks (Poisson, rate a second) or a closed one (clients, each sending
// 0.2 ms after its answer). The disk commits one round after the other, each in its time and another 10 µs for each uplink.
func load(rate, clients int, commit, window time.Duration) string {
	const end = 2 * time.Second
	p := makePace(window)
	r := rand.New(rand.NewPCG(1, 2))
	next := func() time.Duration { return time.Duration(r.ExpFloat64() / float64(rate) * 1e9) }
	var arrivals, waiting []time.Duration
	var flying []simRound
	for range clients {
		arrivals = append(arrivals, time.Duration(r.IntN(1e6)))
	}
	if rate > 0 {
		arrivals = append(arrivals, next())
	}
	var now, timer time.Duration = 0, -1
	var rounds, done int
	var waits time.Duration
	for now < end {
		now = end
		for _, a := range arrivals {
			now = min(now, a)
		}
		if len(flying) > 0 {
			now = min(now, flying[0].back)
		}
		if timer >= 0 {
			now = min(now, timer)
		}
		if len(flying) > 0 && now == flying[0].back {
			for range min(flying[0].n, clients) {
				arrivals = append(arrivals, now+200*time.Microsecond+time.Duration(r.IntN(200_000)))
			}
			flying = flying[1:]
		}
		kept := arrivals[:0]
		for _, a := range arrivals {
			if a > now {
				kept = append(kept, a)
				continue
			}
			waiting = append(waiting, now)
			if clients == 0 {
				kept = append(kept, now+next())
			}
		}
		arrivals = kept
		var f flight
		for _, fl := range flying {
			f.turns, f.uplinks = f.turns+1, f.uplinks+int64(fl.n)
		}
		start, wait := p.next(now, int64(len(waiting)), f)
		if timer = -1; wait != hold {
			timer = now + wait
		}
		if start {
			for _, w := range waiting {
				waits += now - w
			}
			p.began(now, int64(len(waiting)))
			rounds, done = rounds+1, done+len(waiting)
			begins := now
			if len(flying) > 0 {
				begins = flying[len(flying)-1].back
			}
			flying = append(flying, simRound{len(waiting), begins + commit + time.Duration(len(waiting))*10*time.Microsecond})
			waiting = nil
		}
	}
	return fmt.Sprintf("%.0f uplinks/s, %.1f a commit, %.1f ms waited\n", float64(done)/end.Seconds(),
		float64(done)/float64(rounds), float64(waits.Microseconds())/float64(done)/1000)
}
