package stream

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/entry"
)

// ask serves a pull and decodes what comes.
func ask(t *testing.T, f *Feed, from dunlin.NodeID, p *pull) ([]answer, int, error) {
	t.Helper()
	b, err := f.Serve(t.Context(), from, MethodPull, p.append(nil))
	if err != nil {
		return nil, 0, err
	}
	a, err := decodeReply(b, p)
	if err != nil {
		t.Errorf("reply %x: %v", b, err)
	}
	return a, len(b), err
}

func TestServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, 3, func(c *Config) { c.ReplyBytes = 2 << 10 })
		w.place(0, 1, 1)
		w.place(1, 1, 1)
		w.place(2, 1, 2)
		w.beating()
		for range 100 {
			w.commit(0, 0, true, true)
		}
		w.commit(0, 1, true, true)
		f := w.nodes[0].feed
		from := func(shard dunlin.ShardID, next uint64) []position { return []position{{shard, next}} }
		one := func(what string, p *pull, want answer, items int) {
			t.Helper()
			a, _, err := ask(t, f, 2, p)
			if err != nil || len(a) != 1 || a[0].status != want.status || a[0].next != want.next || a[0].head != want.head || len(a[0].items) != items {
				t.Errorf("%s: got %+v, %v", what, a, err)
			}
		}
		one("where it ends", &pull{from: from(0, 0)}, answer{next: 102, head: 102}, 0)
		one("nothing there", &pull{from: from(0, 102)}, answer{next: 102, head: 102}, 0)
		one("ahead of it", &pull{from: from(0, 500)}, answer{next: 500, head: 102}, 0)
		one("a device's", &pull{max: 1 << 20, device: new(key(3)), from: from(0, 1)}, answer{next: 102, head: 102}, 1)
		one("not here", &pull{from: from(2, 1)}, answer{status: statusAbsent, next: 1}, 0)
		if a, n, err := ask(t, f, 2, &pull{max: 1 << 20, from: from(0, 1)}); err != nil || n > 3<<10 || len(a[0].items) < 10 || a[0].next != uint64(len(a[0].items))+1 {
			t.Errorf("bounded: %d bytes, %d entries to %d, %v", n, len(a[0].items), a[0].next, err)
		} else if st := a[0].items[0].Entry.Changes[0].Stages[0]; st.StateSet || st.State != nil {
			t.Errorf("a plugin's state came along")
		}
		if a, _, err := ask(t, f, 2, &pull{max: 1, from: from(0, 1)}); err != nil || len(a[0].items) != 1 || a[0].next != 2 {
			t.Errorf("at least one: %+v, %v", a, err)
		}
		w.do(func() { w.nodes[0].replicas[0].first = 50 })
		one("not kept", &pull{from: from(0, 3)}, answer{status: statusLost, next: 3, head: 102}, 0)
		w.do(func() { w.nodes[0].cut = true })
		pause(t.Context(), 10*time.Second)
		one("behind", &pull{wait: time.Second, from: from(0, 102)}, answer{status: statusStale, next: 102, head: 102}, 0)
		one("behind, but it has this", &pull{max: 1, from: from(0, 60)}, answer{next: 61, head: 102}, 1)
		if _, err := f.Serve(t.Context(), 2, "feed/other", nil); !errors.Is(err, dunlin.ErrInvalid) {
			t.Errorf("another method: %v", err)
		}
		if _, err := f.Serve(t.Context(), 2, MethodPull, []byte{1, 2, 3}); !errors.Is(err, dunlin.ErrInvalid) {
			t.Errorf("broken bytes: %v", err)
		}
	})
}

// A pull waits until there is something, its time is up, a newer one comes or its caller leaves.
func TestServeWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 2, nil)
		w.place(0, 1, 1)
		w.place(1, 1, 1)
		w.beating()
		pause(t.Context(), time.Second)
		f := w.nodes[0].feed
		both := &pull{wait: 10 * time.Second, max: 1 << 20, from: []position{{0, 1}, {1, 1}}}
		type end struct {
			a     []answer
			after time.Duration
		}
		start := func(from dunlin.NodeID) chan end {
			done, began := make(chan end, 1), time.Now()
			go func() {
				a, _, _ := ask(t, f, from, both)
				done <- end{a, time.Since(began)}
			}()
			synctest.Wait()
			return done
		}
		if e := <-start(2); len(e.a) != 0 || e.after != 10*time.Second {
			t.Errorf("nothing: %+v", e)
		}
		done := start(2)
		pause(t.Context(), time.Second)
		w.commit(1, 0, false, true)
		w.commit(1, 0, true, true)
		if e := <-done; len(e.a) != 1 || e.a[0].shard != 1 || e.a[0].next != 3 || len(e.a[0].items) != 1 || e.after != time.Second {
			t.Errorf("news: %+v", e)
		}
		both.from[1].next = 3
		first, other := start(2), start(3)
		pause(t.Context(), time.Second)
		second := start(2)
		if e := <-first; len(e.a) != 0 || e.after != time.Second {
			t.Errorf("a newer one: %+v", e)
		}
		if e := <-second; len(e.a) != 0 || e.after != 10*time.Second {
			t.Errorf("the newer one: %+v", e)
		}
		<-other
		done = start(2)
		w.do(func() { w.nodes[0].cut = true })
		if e := <-done; len(e.a) != 2 || e.a[0].status != statusStale || e.after > 4*time.Second {
			t.Errorf("its replica hears of nobody any more: %+v", e)
		}
		w.do(func() { w.nodes[0].cut = false })
		pause(t.Context(), time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := f.Serve(ctx, 2, MethodPull, both.append(nil)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("caller left: %v", err)
		}
		var wg sync.WaitGroup
		var refused, ended int
		var mu sync.Mutex
		for range 40 { // a peer that does not keep to one
			wg.Go(func() {
				_, _, err := ask(t, f, 2, both)
				mu.Lock()
				defer mu.Unlock()
				if errors.Is(err, dunlin.ErrOverloaded) {
					refused++
				} else {
					ended++
				}
			})
		}
		wg.Wait()
		if ended == 0 || refused+ended != 40 {
			t.Errorf("%d refused, %d ended", refused, ended)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.mu.serving) != 0 || len(f.mu.shards[0].followers) != 0 {
			t.Errorf("left behind: %v, %d followers", f.mu.serving, len(f.mu.shards[0].followers))
		}
	})
}

func sampleReply() (*pull, []byte) {
	p := &pull{wait: time.Second, max: 1 << 16, device: new(key(7)), from: []position{{3, 10}, {1, 0}, {2, 7}}}
	w := newReply(1 << 16)
	w.open(3, 10)
	e := &dunlin.Entry{Shard: 3, Term: 4, At: 5, Changes: []dunlin.Change{{DeviceKey: key(7), Domain: "d", Version: 1,
		Stages: []dunlin.StageResult{{State: bytes.Repeat([]byte("s"), 1000), StateSet: true}, {Failure: "trap"}},
		Inputs: []dunlin.Input{{Received: 5}}}}}
	w.item(dunlin.FeedItem{Index: 10, Entry: e})
	w.item(dunlin.FeedItem{Index: 12, Entry: e})
	w.close(statusOK, 14, 20)
	w.open(1, 0)
	w.close(statusStale, 9, 9)
	w.open(2, 7)
	w.close(statusLost, 7, 100)
	return p, w.b
}

func TestCodec(t *testing.T) {
	p, b := sampleReply()
	if len(b) > 200 {
		t.Errorf("%d bytes: the plugins' states came along", len(b))
	}
	back, err := decodePull(p.append(nil), 4)
	if err != nil || back.wait != p.wait || back.max != p.max || *back.device != *p.device || len(back.from) != 3 || back.from[0] != p.from[0] {
		t.Errorf("got %+v, %v", back, err)
	}
	a, err := decodeReply(b, p)
	if err != nil || len(a) != 3 || len(a[0].items) != 2 || a[0].items[1].Index != 12 || a[0].next != 14 || a[0].head != 20 ||
		a[0].items[0].Entry.Changes[0].Stages[1].Failure != "trap" || a[1].status != statusStale || a[1].next != 9 || a[2].status != statusLost {
		t.Errorf("got %+v, %v", a, err)
	}
	for i := range b {
		if _, err := decodeReply(b[:i], p); err == nil && i > 1 && a[0].next != 14 {
			t.Errorf("%d bytes of %d are a reply", i, len(b))
		}
	}
	for name, bad := range map[string]*pull{
		"not asked for":     {from: []position{{3, 10}, {1, 0}}},
		"another position":  {from: []position{{3, 11}, {1, 0}, {2, 7}}},
		"nothing asked for": {},
	} {
		if _, err := decodeReply(b, bad); !errors.Is(err, dunlin.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
	for name, b := range map[string][]byte{
		"twice":       (&pull{from: []position{{1, 1}, {1, 1}}}).append(nil),
		"no shard":    (&pull{}).append(nil),
		"which shard": (&pull{from: []position{{4, 1}}}).append(nil),
		"wait":        (&pull{wait: time.Hour, from: []position{{1, 1}}}).append(nil),
		"name":        (&pull{device: &dunlin.DeviceKey{Tenant: dunlin.Tenant(strings.Repeat("x", 65))}, from: []position{{1, 1}}}).append(nil),
		"more":        append((&pull{from: []position{{1, 1}}}).append(nil), 0),
	} {
		if _, err := decodePull(b, 4); !errors.Is(err, dunlin.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
}

// What plugins send out reaches followers at other nodes, and so does what made the states that do not.
func TestEffectsComeAlong(t *testing.T) {
	e := &dunlin.Entry{Shard: 3, Term: 4, At: 5, Changes: []dunlin.Change{{DeviceKey: key(7), Domain: "d", Version: 1, Inputs: []dunlin.Input{{Kind: dunlin.InputRaw, Received: 5}},
		Stages:   []dunlin.StageResult{{State: []byte("s"), StateSet: true, Made: dunlin.Made{Module: 1, Config: 2}, Refused: []dunlin.InputError{{Reason: "no"}}}},
		Commands: []dunlin.Command{{ID: "1-0", Name: "x", Deadline: 9}}, Publish: []dunlin.Publication{{Topic: "a/b", Payload: []byte("c")}}}}}
	w := newReply(1 << 16)
	w.open(3, 10)
	w.item(dunlin.FeedItem{Index: 10, Entry: e})
	w.close(statusOK, 11, 11)
	a, err := decodeReply(w.b, &pull{from: []position{{3, 10}}})
	if err != nil {
		t.Fatal(err)
	}
	want := withoutStates(e)
	if got := a[0].items[0].Entry; !reflect.DeepEqual(got, want) || want.Changes[0].Stages[0].Made.Config != 2 {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// The states of plugins are left out without touching the entry, which others read.
func TestWithoutStates(t *testing.T) {
	e := &dunlin.Entry{Changes: []dunlin.Change{{}, {Stages: []dunlin.StageResult{{State: []byte("x"), StateSet: true, Failure: "f"}}}}}
	got := withoutStates(e)
	if got.Changes[1].Stages[0].State != nil || got.Changes[1].Stages[0].Failure != "f" || e.Changes[1].Stages[0].State == nil {
		t.Errorf("got %+v of %+v", got, e)
	}
	if withoutStates(got) != got {
		t.Error("an entry without states was copied")
	}
}

func FuzzDecodePull(f *testing.F) {
	p, _ := sampleReply()
	f.Add(p.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decodePull(b, 4)
		if err != nil {
			return
		}
		again, err := decodePull(p.append(nil), 4)
		if err != nil || len(again.from) != len(p.from) || again.wait != p.wait || again.max != p.max {
			t.Errorf("%+v became %+v, %v", p, again, err)
		}
	})
}

func FuzzDecodeReply(f *testing.F) {
	p, b := sampleReply()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		answers, err := decodeReply(b, p)
		if err != nil {
			return
		}
		for i := range answers {
			a, last := &answers[i], uint64(0)
			for _, it := range a.items {
				if it.Index >= a.next || it.Index <= last && last != 0 || it.Entry.Shard != a.shard {
					t.Fatalf("entry %d of shard %d behind %d, to %d of shard %d", it.Index, it.Entry.Shard, last, a.next, a.shard)
				}
				last = it.Index
				_ = entry.Append(nil, it.Entry)
			}
		}
	})
}
