package main_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/shard"
)

// printed is what a running process has printed so far.
type printed struct {
	mu struct {
		sync.Mutex
		lines []string
	}
}

// watch starts a process that prints lines until the test ends.
func watch(t *testing.T, name string, args ...string) *printed {
	t.Helper()
	cmd := exec.Command(foreign(t, "stdbuf"), append([]string{"-oL", name}, args...)...)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, done := &printed{}, make(chan struct{})
	go func() {
		defer close(done)
		in := bufio.NewScanner(pipe)
		in.Buffer(nil, 1<<20)
		for in.Scan() {
			p.mu.Lock()
			p.mu.lines = append(p.mu.lines, in.Text())
			p.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it runs until then
		<-done
		_ = cmd.Wait() // "signal: killed"
	})
	return p
}

// have returns the lines that begin with a prefix, without it.
func (p *printed) have(prefix string) (lines []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.mu.lines {
		if rest, ok := strings.CutPrefix(l, prefix); ok {
			lines = append(lines, rest)
		}
	}
	return lines
}

// until waits for at most 20 s.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); <-time.After(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("not within 20 s: %s", what)
			return
		}
	}
}

// shards asks a node where the shards are.
func (n *node) shards() []dunlin.ShardReplicas {
	n.t.Helper()
	var list struct{ Items []dunlin.ShardReplicas }
	n.get("/v1/cluster/shards", &list)
	return list.Items
}

// deviceWhere finds a device, by a number behind the prefix, of whose shard something is true.
func deviceWhere(t *testing.T, n *node, prefix string, shards int, ok func(sh *dunlin.ShardReplicas) bool) string {
	t.Helper()
	list := n.shards()
	for i := range 1000 {
		id := fmt.Sprintf("%s%d", prefix, i)
		sh := shard.Of(dunlin.DeviceKey{Tenant: dunlin.DefaultTenant, Device: dunlin.DeviceID(id + "-00")}, shards)
		for j := range list {
			if list[j].Shard == sh && ok(&list[j]) {
				return id
			}
		}
	}
	t.Fatalf("no device is such that its shard is as wanted: %+v", list)
	return ""
}

// ownedBy says whether the member owns the shard.
func ownedBy(name string) func(*dunlin.ShardReplicas) bool {
	return func(sh *dunlin.ShardReplicas) bool {
		return slices.ContainsFunc(sh.Replicas, func(r dunlin.Replica) bool { return r.Name == name && r.Node == sh.Owner })
	}
}

// transition is one change of one alert.
type transition struct {
	device string
	raised uint64
	state  dunlin.AlertState
}

// transitions asks for a device's alerts and lists their changes in order.
func transitions(t *testing.T, n *node, device string) (all []transition) {
	t.Helper()
	var page struct{ Items []dunlin.Alert }
	n.get("/v1/devices/"+device+"/alerts?limit=1000", &page)
	slices.SortFunc(page.Items, func(a, b dunlin.Alert) int { return int(a.RaisedSeq) - int(b.RaisedSeq) })
	for _, a := range page.Items {
		all = append(all, transition{device, a.RaisedSeq, dunlin.AlertRaised})
		if a.State == dunlin.AlertCleared {
			all = append(all, transition{device, a.RaisedSeq, dunlin.AlertCleared})
		}
	}
	return all
}

// Every subscriber hears every transition of every alert, whatever nodes he, the device and its shard are at, and whichever
// of these dies: in each device's order, and twice only what he may not have acknowledged at a node that died.
func TestAlertsReachEverybody(t *testing.T) {
	sub := foreign(t, "mosquitto_sub")
	h := gather(t, "a", "b", "c")
	a, b, c := h.nodes["a"], h.nodes["b"], h.nodes["c"]
	h.rule(c)
	subscribers := map[string]*printed{}
	for name, n := range h.nodes {
		subscribers[name] = watch(t, sub, "-h", "127.0.0.1", "-p", port(n.MQTT), "-c", "-i", "ops-"+name, "-q", "1", "-t", "d/+/a", "-d")
		until(t, "a subscription at "+name, func() bool { return len(subscribers[name].have("Subscribed")) > 0 })
	}

	f := play(t, "al", 9, a, b, c)
	f.more(t, 400)
	a.kill()
	f.more(t, 400)
	a = h.add("a")
	h.wait("b", "whole cluster", func(st *dunlin.ClusterStatus) bool { return st.Healthy && st.Alive == 3 })
	f.more(t, 400)
	f.halt(t, a, b, c)

	want := map[string][]transition{}
	total := 0
	for _, dev := range f.devs {
		want[dev.device] = transitions(t, b, dev.device)
		total += len(want[dev.device])
	}
	for name, s := range subscribers {
		var got map[string][]transition
		again := 0
		count := func() bool {
			got, again = map[string][]transition{}, 0
			for _, line := range s.have("{") {
				var one dunlin.Alert
				if err := json.Unmarshal([]byte("{"+line), &one); err != nil {
					t.Fatalf("alert %q: %v", line, err)
				}
				tr := transition{string(one.Device), one.RaisedSeq, one.State}
				if slices.Contains(got[tr.device], tr) {
					again++
				} else {
					got[tr.device] = append(got[tr.device], tr)
				}
			}
			for dev := range want {
				if len(got[dev]) < len(want[dev]) {
					return false
				}
			}
			return true
		}
		until(t, "all alerts heard by the subscriber at "+name, count)
		for dev := range want {
			if !slices.Equal(got[dev], want[dev]) {
				t.Errorf("the subscriber at %s heard of %s\n%v, want\n%v", name, dev, got[dev], want[dev])
			}
		}
		t.Logf("the subscriber at %s heard %d transitions, and %d of them again", name, total, again)
		if name != "a" && again > 0 {
			t.Errorf("the subscriber at %s, which lived, heard %d of %d transitions twice", name, again, total)
		}
	}
}

// readingSeqs are the numbers of the uplinks in the events of lines with a prefix.
func readingSeqs(t *testing.T, p *printed, prefix string) (seqs []uint64) {
	t.Helper()
	for _, line := range p.have(prefix) {
		var ev struct {
			Seq     uint64
			Derived bool
			Records []any
		}
		if err := json.Unmarshal([]byte(line), &ev); err != nil {
			t.Fatalf("event %q: %v", line, err)
		}
		if ev.Seq > 0 && ev.Records != nil && !ev.Derived {
			seqs = append(seqs, ev.Seq)
		}
	}
	return seqs
}

// contiguous says what is wrong with numbers that shall count from first on.
func contiguous(seqs []uint64, first uint64) error {
	for i, s := range seqs {
		if s != first+uint64(i) {
			return fmt.Errorf("event %d has seq %d, want %d", i, s, first+uint64(i))
		}
	}
	return nil
}

// Who follows a device at a node that does not own it misses and repeats nothing when the owner dies, and goes on at any
// other node with the id of an event.
func TestFollowingOverTheOwnersDeath(t *testing.T) {
	curl := foreign(t, "curl")
	h := gather(t, "a", "b", "c")
	a, b, c := h.nodes["a"], h.nodes["b"], h.nodes["c"]
	h.rule(a)
	prefix := deviceWhere(t, b, "fo", 16, ownedBy("a"))
	device := prefix + "-00"
	events := watch(t, curl, "-s", "-N", "http://"+b.HTTP+"/v1/events?types=reading&device="+device)
	until(t, "an event stream at b", func() bool { return len(events.have("retry:")) > 0 })
	tails := map[string]*printed{}
	for _, name := range []string{"a", "c"} { // the one at a loses its connection, too
		tails[name] = watch(t, binary, "tail", device, "-o", "json", "--server", "http://"+h.nodes[name].HTTP)
	}
	f := play(t, prefix, 2, b, c)
	for name, p := range tails {
		until(t, "a line of tail at "+name, func() bool { return len(readingSeqs(t, p, "")) > 0 })
	}
	f.more(t, 100)
	a.kill()
	f.more(t, 150)
	a = h.add("a")
	h.wait("b", "whole cluster", func(st *dunlin.ClusterStatus) bool { return st.Healthy && st.Alive == 3 })
	f.more(t, 50)
	f.halt(t, a, b, c)

	last := uint64(len(f.devs[0].acked))
	shown := func(p *printed) []uint64 { return readingSeqs(t, p, "data: ") }
	until(t, "all events at b", func() bool { return len(shown(events)) >= int(last) })
	if err := contiguous(shown(events), 1); err != nil {
		t.Errorf("the stream at b: %v", err)
	}
	for name, p := range tails {
		var seqs []uint64
		until(t, "all lines of tail at "+name, func() bool { seqs = readingSeqs(t, p, ""); return seqs[len(seqs)-1] >= last })
		if err := contiguous(seqs, seqs[0]); err != nil {
			t.Errorf("tail at %s: %v", name, err)
		}
	}

	ids := events.have("id: ")
	if uint64(len(ids)) < last {
		t.Fatalf("%d ids for %d events", len(ids), last)
	}
	for name, n := range map[string]*node{"a": a, "b": b, "c": c} {
		for _, seq := range []uint64{1, last / 2, last - 1} {
			id := ids[len(ids)-int(last)+int(seq)-1] // an id before the first event says where the stream began
			again := watch(t, curl, "-s", "-N", "-H", "Last-Event-ID: "+id, "http://"+n.HTTP+"/v1/events?types=reading&device="+device)
			until(t, "the rest of the events at "+name, func() bool { return len(shown(again)) >= int(last-seq) })
			if err := contiguous(shown(again), seq+1); err != nil {
				t.Errorf("behind the id of seq %d at %s: %v", seq, name, err)
			}
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+c.HTTP+"/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Last-Event-ID", "nonsense")
	if resp, err := http.DefaultClient.Do(req); err != nil || resp.StatusCode/100 != 4 {
		t.Errorf("an id that is none: %v %v", resp, err)
	}
}
