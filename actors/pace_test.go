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

// TestPace plays scripts to a pace: at each line, time in milliseconds, uplinks that wait, commits in flight. "load" plays a
// whole stream of uplinks against a commit of given length and tells what the pace made of it.
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
					inflight, _ := strconv.Atoi(f[2])
					at := time.Duration(now * 1e6)
					start, wait := p.next(at, int64(waiting), int64(inflight))
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

// load simulates 4 seconds: an open stream of uplinks (Poisson, rate a second) or a closed one (clients, each sending
// 0.2 ms after its answer). A commit takes its time and another 10 µs for each uplink.
func load(rate, clients int, commit, window time.Duration) string {
	const end = 4 * time.Second
	p := makePace(window)
	r := rand.New(rand.NewPCG(1, 2))
	next := func() time.Duration { return time.Duration(r.ExpFloat64() / float64(rate) * 1e9) }
	var arrivals, waiting, flying []time.Duration
	for range clients {
		arrivals = append(arrivals, time.Duration(r.IntN(1e6)))
	}
	if rate > 0 {
		arrivals = append(arrivals, next())
	}
	var now, back, timer time.Duration = 0, -1, -1
	var rounds, done int
	var waits time.Duration
	for now < end {
		now = end
		for _, a := range arrivals {
			now = min(now, a)
		}
		if back >= 0 {
			now = min(now, back)
		}
		if timer >= 0 {
			now = min(now, timer)
		}
		if now == back {
			for range flying {
				if clients > 0 {
					arrivals = append(arrivals, now+200*time.Microsecond+time.Duration(r.IntN(200_000)))
				}
			}
			flying, back = nil, -1
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
		start, wait := p.next(now, int64(len(waiting)), int64(min(len(flying), 1)))
		if timer = -1; wait != hold {
			timer = now + wait
		}
		if start {
			for _, w := range waiting {
				waits += now - w
			}
			p.began(now, int64(len(waiting)))
			rounds, done = rounds+1, done+len(waiting)
			flying, waiting = append(flying, waiting...), nil
			back = now + commit + time.Duration(len(flying))*10*time.Microsecond
		}
	}
	return fmt.Sprintf("%.0f uplinks/s, %.1f a commit, %.1f ms waited\n", float64(done)/end.Seconds(),
		float64(done)/float64(rounds), float64(waits.Microseconds())/float64(done)/1000)
}
