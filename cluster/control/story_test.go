package control

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/dunlin-iot/dunlin"
)

// TestStories plays scripts. Each command is a moment of an operator's life; run lets the controller work until it is at
// rest, and a new controller takes over in the middle of each run, since it must not matter.
func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		var w *world
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			out, err := w.command(t, d, &w)
			if err != nil {
				return "error: " + err.Error() + "\n"
			}
			return out
		})
	})
}

func (w *world) command(t *testing.T, d *datadriven.TestData, to **world) (string, error) {
	var name, zone, from string
	first := func() string { return d.CmdArgs[0].Key }
	switch d.Cmd {
	case "new":
		shards, rf := 3, 3
		d.MaybeScanArgs(t, "shards", &shards)
		d.MaybeScanArgs(t, "rf", &rf)
		*to = newWorld(shards, rf)
	case "join":
		d.MaybeScanArgs(t, "zone", &zone)
		w.join(first(), zone)
	case "down":
		w.down(w.named(first()))
	case "up":
		w.named(first()).Alive = true
	case "wipe": // it comes back under its name with an empty folder
		b := w.named(first())
		w.down(b)
		w.join(b.Name, b.Zone)
	case "stall":
		w.stalled[w.named(first()).ID] = true
	case "set":
		state := dunlin.MemberState(d.CmdArgs[1].Key)
		b := w.named(first())
		if err := CanSet(w.view(), b.ID, state, w.lim); err != nil {
			return "", err
		}
		b.State = state
	case "rf":
		_, err := fmt.Sscan(first(), &w.rf)
		return "", err
	case "move":
		var sh int
		d.ScanArgs(t, "shard", &sh)
		d.ScanArgs(t, "to", &name)
		r := Request{Shard: dunlin.ShardID(sh), To: w.named(name).ID}
		if d.MaybeScanArgs(t, "from", &from); from != "" {
			if r.From = 99; w.named(from) != nil {
				r.From = w.named(from).ID
			}
		}
		if err := CanMove(w.view(), r.Shard, r.From, r.To, w.lim); err != nil {
			return "", err
		}
		w.wishes = append(w.wishes, r)
	case "run":
		return w.run(t, d)
	case "health":
		st := Health(w.view(), w.lim)
		return fmt.Sprintf("%d of %d shards owned, %d full; %d of %d members alive; healthy %t\n%s", st.Owned, st.Shards, st.Full, st.Alive,
			st.Members, st.Healthy, strings.Join(append(st.Moves, st.Problems...), "\n")), nil
	default:
		return "", errors.New("unknown command")
	}
	return "", nil
}

// run works until nothing has been done for 20 s, or a time has passed.
func (w *world) run(t *testing.T, d *datadriven.TestData) (string, error) {
	limit := 0
	d.MaybeScanArgs(t, "for", &limit)
	quiet := d.HasArg("quiet")
	idle, n := 0, 0
	for end := w.now.Add(time.Hour); w.now < end; n++ {
		if limit > 0 && n == limit || limit == 0 && idle > 20 {
			break
		}
		w.tick()
		if n == 5 {
			w.control = New(w.lim)
		}
		as := w.control.Step(w.view())
		if idle++; len(as) > 0 {
			idle = 0
		}
		for _, a := range as {
			if !quiet {
				w.say("%s", w.text(a))
			}
			if err := w.carryOut(a); err != nil {
				return "", err
			}
		}
		for _, g := range w.shards {
			if !g.Conf.settled() || g.Row.Move != nil {
				idle = 0
			}
		}
	}
	out := strings.Join(append(w.log, ""), "\n") + w.table()
	w.log = nil
	if limit == 0 && idle <= 20 {
		return out, errors.New("no rest within an hour")
	}
	return out, nil
}
