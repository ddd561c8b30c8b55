package actors

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// A reading of a device nobody knew: registered, run through the plugin, committed, answered, and in the twin.
func TestOneReadingTheWholeWay(t *testing.T) {
	n := open(t, newStore(), nil)
	defer n.close()
	n.plugin.f = func(_ dunlin.DomainID, _ int, now dunlin.Time, w *dunlin.Work) {
		w.Outcome.State = append([]byte("n"), w.State...)
		w.Outcome.Records = []dunlin.Record{{Metric: "mean", Kind: dunlin.Number, Num: 2, Time: w.Inputs[0].Received}}
		w.Outcome.Signals = []dunlin.AlertSignal{{Raise: true, Rule: "warm", Severity: dunlin.Major}}
	}
	if r := n.one(uplinkIn("cold", "fridge", 1, nil)); r.Err != nil || r.Seq != 1 || !r.Created {
		t.Fatalf("first receipt %+v", r)
	}
	if r := n.one(uplinkIn("cold", "fridge", 2, nil)); r.Err != nil || r.Seq != 2 || r.Created {
		t.Fatalf("second receipt %+v", r)
	}
	twin, err := n.Twin(t.Context(), key("fridge"))
	if err != nil {
		t.Fatal(err)
	}
	if twin.Version != 2 || twin.Reported["temperature"].Value != 2.0 || twin.Reported["mean"].Value != 2.0 ||
		string(twin.Plugins[0].State) != "nn" || len(twin.Alerts) != 1 || twin.Alerts[0].RaisedSeq != 1 {
		t.Errorf("twin %+v", twin)
	}
	var row dunlin.Device
	if err := json.Unmarshal(n.store.rows["devices/default/fridge"], &row); err != nil || row.Domain != "cold" || row.Revision != 1 {
		t.Errorf("device row %+v, %v", row, err)
	}
	if _, err := n.Twin(t.Context(), key("nobody")); !errors.Is(err, dunlin.ErrNotFound) {
		t.Errorf("twin of nobody: %v", err)
	}
}

func TestStrangersAndRefusals(t *testing.T) {
	n := open(t, newStore(), nil)
	defer n.close()
	wantErr(t, "domain shut", n.one(uplinkIn("shut", "a", 1, nil)).Err, dunlin.ErrUnknownDevice)
	wantErr(t, "no such domain", n.one(uplinkIn("gone", "a", 1, nil)).Err, dunlin.ErrUnknownDevice)
	wantErr(t, "bad name", n.one(uplink("a b", 1, nil)).Err, dunlin.ErrInvalid)
	n.store.fail = errors.New("disk")
	wantErr(t, "store", n.one(uplink("a", 1, nil)).Err, dunlin.ErrUnavailable)
	n.store.fail = nil
	n.plugin.err = errors.New("closing")
	wantErr(t, "plugins", n.one(uplinkIn("cold", "a", 1, nil)).Err, dunlin.ErrUnavailable)
	n.plugin.err = nil
	if r := n.one(uplinkIn("cold", "a", 2, nil)); r.Err != nil || r.Seq != 1 {
		t.Errorf("after all that: %+v", r)
	}
	if c := n.active.Load(); c != 1 {
		t.Errorf("%d cells, want 1: strangers take no room", c)
	}
}

// A chain of uplinks for many devices in the shards: one plugin call and one entry for each shard that has any.
func TestBatches(t *testing.T) {
	n := open(t, newStore(), nil)
	defer n.close()
	b := newInbox(400)
	var us []*dunlin.Uplink
	for i := range 400 {
		us = append(us, uplinkIn("cold", in(dunlin.ShardID(i%4), i/4%10), uint64(i+1), b))
	}
	n.send(us...)
	for tag, r := range b.wait() {
		if want := (tag-1)/40 + 1; r.Err != nil || r.Seq != want {
			t.Errorf("uplink %d: %+v, want seq %d", tag, r, want)
		}
	}
	if calls, flushes := n.plugin.calls.Load(), n.log.flushes.Load(); calls != 4 || len(n.store.entries) != 4 || flushes > 3 {
		t.Errorf("%d plugin calls, %d entries, %d flushes", calls, len(n.store.entries), flushes)
	}
}

// While a device waits for its commit its uplinks queue, and then make one turn; other devices of its shard go on.
func TestCommittingDeviceQueues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := open(t, newStore(), func(n *node, _ *Config) { n.log.hand = true })
		defer n.close()
		a, other := in(0, 0), in(0, 1)
		b := newInbox(5)
		n.send(uplink(a, 1, b))
		synctest.Wait()
		first := n.log.take()
		n.send(uplink(a, 2, b), uplink(a, 3, b), uplink(other, 4, b))
		synctest.Wait()
		if got := len(b.answers()); got != 0 || len(first) != 1 {
			t.Fatalf("%d answers before any commit, %d entries", got, len(first))
		}
		// A commit in flight paces: what came meanwhile starts when it is back.
		first[0].commit(n.store)
		synctest.Wait()
		second := n.log.take()
		if len(second) != 1 || len(b.answers()) != 1 {
			t.Fatalf("%d entries, %d answers after the first commit", len(second), len(b.answers()))
		}
		n.send(uplink(a, 5, b))
		synctest.Wait()
		second[0].commit(n.store)
		synctest.Wait()
		third := n.log.take()
		third[0].commit(n.store)
		for tag, want := range map[uint64]uint64{1: 1, 2: 2, 3: 3, 4: 1, 5: 4} {
			if r := b.wait()[tag]; r.Err != nil || r.Seq != want {
				t.Errorf("uplink %d: %+v, want seq %d", tag, r, want)
			}
		}
	})
}

// Enough uplinks of other devices start a second entry while the first is in flight.
func TestEntriesInFlight(t *testing.T) {
	const many = 512
	synctest.Test(t, func(t *testing.T) {
		n := open(t, newStore(), func(n *node, _ *Config) { n.log.hand = true })
		b := newInbox(1 + many + 2)
		n.send(uplink(in(0, 0), 1, b))
		synctest.Wait()
		var us []*dunlin.Uplink
		for i := range many {
			us = append(us, uplink(in(0, 1+i%50), uint64(i+2), b))
		}
		us = append(us, uplink(in(0, 0), 1000, b), uplink(in(0, 0), 1001, b))
		n.send(us...)
		synctest.Wait()
		ps := n.log.take()
		if len(ps) != 2 {
			t.Fatalf("%d entries in flight, want 2", len(ps))
		}
		// The second comes back first: its devices are not those of the first.
		ps[1].commit(n.store)
		ps[0].commit(n.store)
		synctest.Wait()
		for _, p := range n.log.take() {
			p.commit(n.store)
		}
		for tag, r := range b.wait() {
			if r.Err != nil {
				t.Errorf("uplink %d: %+v", tag, r)
			}
		}
		n.log.hand = false
		n.close()
	})
}

// What is not committed is not kept: waiters are told, and the next turn begins with what the store says.
func TestCommitFails(t *testing.T) {
	n := open(t, newStore(), nil)
	defer n.close()
	n.one(uplink("a", 1, nil))
	n.log.async = func(round []proposal, _ *store) {
		for _, p := range round {
			p.done(0, dunlin.ErrOverloaded)
		}
	}
	if r := n.one(uplink("a", 2, nil)); !errors.Is(r.Err, dunlin.ErrOverloaded) || r.RetryAfterSeconds < 1 {
		t.Errorf("receipt %+v", r)
	}
	n.log.async = nil
	if r := n.one(uplink("a", 3, nil)); r.Err != nil || r.Seq != 2 {
		t.Errorf("receipt %+v, want seq 2", r)
	}
	if n.store.loads != 2 {
		t.Errorf("%d loads, want 2", n.store.loads)
	}
}

// A term ends with a turn in flight; the next one waits for it, whatever becomes of it, and begins with what waited behind it.
func TestTermsFollowEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := open(t, newStore(), func(n *node, _ *Config) { n.log.hand = true })
		defer n.close()
		a := in(1, 0)
		b := newInbox(4)
		n.send(uplink(a, 1, b))
		synctest.Wait()
		old := n.log.take()
		n.send(uplink(a, 2, b)) // waits for the commit
		synctest.Wait()
		n.Disown(1)
		n.send(uplink(a, 3, b))
		synctest.Wait()
		wantErr(t, "uplink after the term", b.answers()[3].Err, dunlin.ErrNotOwner)
		n.Own(1, 7)
		synctest.Wait()
		if n.shards[1].open.Load() {
			t.Fatal("the new term began with a turn of the old one in flight")
		}
		old[0].commit(n.store) // it had been committed after all
		synctest.Wait()
		n.send(uplink(a, 4, b))
		synctest.Wait()
		for range 2 {
			next := n.log.take()
			if len(next) != 1 || next[0].term != 7 {
				t.Fatalf("entries %+v", next)
			}
			next[0].commit(n.store)
			synctest.Wait()
		}
		if got := b.wait(); got[1].Seq != 1 || got[2].Seq != 2 || got[4].Seq != 3 {
			t.Errorf("answers %+v", got)
		}
	})
}

// A node that loses a shard and owns it again works off what it had, in order: first what was proposed in vain, if the device can
// tell it from what was committed, then what waited for that, then what came since.
func TestOrderAcrossTerms(t *testing.T) {
	for _, committed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n := open(t, newStore(), func(n *node, _ *Config) { n.log.hand = true })
			defer func() { n.close(); after(100 * time.Millisecond) }()
			a, b := in(1, 0), newInbox(4)
			n.send(uplink(a, 1, b))
			synctest.Wait()
			old := n.log.take()
			n.send(uplink(a, 2, b))
			synctest.Wait()
			n.Disown(1)
			n.Own(1, 7)
			synctest.Wait()
			if committed {
				n.store.apply(slices.Clone(old[0].data))
			}
			old[0].done(0, dunlin.ErrNotOwner)
			synctest.Wait()
			n.send(uplink(a, 3, b), uplink(a, 4, b))
			for range 3 {
				after(10 * time.Millisecond)
				for _, p := range n.log.take() {
					p.commit(n.store)
				}
			}
			got := b.wait()
			for tag := uint64(1); tag <= 4; tag++ {
				if r := got[tag]; r.Err != nil || r.Seq != tag || r.Duplicate != (committed && tag == 1) {
					t.Errorf("committed %v, uplink %d: %+v", committed, tag, r)
				}
			}
		})
	}
}

// A full mailbox says so and has room again afterwards; nothing of protoactor is held up by it.
func TestMailboxIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := open(t, newStore(), func(n *node, c *Config) { n.log.hand, c.MailboxEvents = true, 10 })
		defer n.close()
		b := newInbox(15)
		var us []*dunlin.Uplink
		for i := range 15 {
			us = append(us, uplink(in(0, i%3), uint64(i+1), b))
		}
		n.send(us...)
		synctest.Wait()
		full := 0
		for _, r := range b.answers() {
			wantErr(t, "beyond the bound", r.Err, dunlin.ErrOverloaded)
			full++
		}
		if full != 5 {
			t.Errorf("%d refused, want 5", full)
		}
		answer, err := n.System().Root.RequestFuture(NewPID(key(in(0, 0))), &Ask{}, time.Second).Result()
		if a, ok := answer.(*Answer); err != nil || !ok || !errors.Is(a.Err, dunlin.ErrNotFound) {
			t.Errorf("asked with a full mailbox: %+v, %v", answer, err)
		}
		n.log.take()[0].commit(n.store)
		b.wait()
		synctest.Wait() // the room is given back after the answers
		if n.shards[0].box.events.Load() != 0 || n.shards[0].box.bytes.Load() != 0 {
			t.Errorf("%d events still reserved", n.shards[0].box.events.Load())
		}
		big := uplink(in(0, 0), 99, nil)
		big.Kind, big.Payload = dunlin.InputRaw, make([]byte, 3<<20)
		wantErr(t, "beyond the bytes", n.one(big).Err, dunlin.ErrOverloaded)
	})
}

// A panic under the actor (a bug in the plugins' host, say) costs its own batch; the actor restarts and goes on.
func TestActorRestarts(t *testing.T) {
	n := open(t, newStore(), nil)
	defer n.close()
	n.one(uplinkIn("cold", in(2, 0), 1, nil))
	n.plugin.f = func(_ dunlin.DomainID, _ int, _ dunlin.Time, w *dunlin.Work) {
		if w.Device == dunlin.DeviceID(in(2, 1)) {
			panic("poison")
		}
	}
	b := newInbox(2)
	n.send(uplinkIn("cold", in(2, 0), 2, b), uplinkIn("cold", in(2, 1), 3, b))
	for tag, r := range b.wait() {
		wantErr(t, "of the poisoned batch", r.Err, dunlin.ErrUnavailable)
		_ = tag
	}
	n.settle(n.shards[2].open.Load)
	if r := n.one(uplinkIn("cold", in(2, 0), 4, nil)); r.Err != nil || r.Seq != 2 {
		t.Errorf("after the restart: %+v", r)
	}
}

// What stage 0 derives, stage 1 sees, and a raw input that stage 0 decoded is telemetry to it; the entry keeps the input.
func TestStagesSeeDerivedReadings(t *testing.T) {
	n := open(t, newStore(), nil)
	defer n.close()
	var saw []dunlin.Input
	n.plugin.f = func(_ dunlin.DomainID, stage int, _ dunlin.Time, w *dunlin.Work) {
		if stage == 0 {
			w.Outcome.Records = []dunlin.Record{{Metric: "decoded", Kind: dunlin.Number, Num: 5, Time: 7}}
			return
		}
		saw = append(saw, w.Inputs...)
	}
	u := uplinkIn("two", "a", 1, nil)
	u.Kind, u.Payload, u.Records = dunlin.InputRaw, []byte{1, 2}, nil
	if r := n.one(u); r.Err != nil {
		t.Fatal(r.Err)
	}
	if len(saw) != 1 || saw[0].Kind != dunlin.InputTelemetry || len(saw[0].Records) != 1 || saw[0].Records[0].Num != 5 {
		t.Errorf("stage 1 saw %+v", saw)
	}
	if c := n.store.entries[0].Changes[0]; c.Inputs[0].Kind != dunlin.InputRaw || len(c.Inputs[0].Records) != 0 || len(c.Stages) != 2 {
		t.Errorf("the entry holds %+v", c)
	}
}

// Timers fire once: at their time, and after a restart of the node for those that became due meanwhile.
func TestTimersFireOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStore()
		fired := map[string]int{}
		plug := func(_ dunlin.DomainID, _ int, now dunlin.Time, w *dunlin.Work) {
			for _, in := range w.Inputs {
				if in.Kind == dunlin.InputTimer {
					fired[string(w.Device)+" "+in.Timer]++
				} else {
					w.Outcome.Timers = []dunlin.TimerSet{{Name: "silence", Due: now.Add(time.Minute)}}
				}
			}
		}
		n := open(t, st, func(n *node, _ *Config) { n.plugin.f = plug })
		for i := range 20 {
			n.one(uplinkIn("cold", in(dunlin.ShardID(i%4), i/4), uint64(i+1), nil))
		}
		after(50 * time.Second)
		again := in(0, 0)
		n.one(uplinkIn("cold", again, 100, nil)) // puts its timer off
		after(20 * time.Second)
		synctest.Wait()
		if len(fired) != 19 || fired[again+" silence"] != 0 {
			t.Errorf("after a minute: %v", fired)
		}
		n.close()
		after(time.Hour)
		n = open(t, st, func(n *node, _ *Config) { n.plugin.f = plug })
		after(time.Second)
		synctest.Wait()
		n.close()
		for name, times := range fired {
			if times != 1 {
				t.Errorf("timer %s fired %d times", name, times)
			}
		}
		if len(fired) != 20 {
			t.Errorf("%d timers fired, want 20", len(fired))
		}
	})
}

// More timers than a turn takes are due at once in one shard: the rest follows when the first have been committed.
func TestManyTimersAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many = turnTimersMax*2 + 10
		fired := map[dunlin.DeviceID]int{}
		n := open(t, newStore(), func(n *node, _ *Config) {
			n.plugin.f = func(_ dunlin.DomainID, _ int, now dunlin.Time, w *dunlin.Work) {
				if w.Inputs[0].Kind == dunlin.InputTimer {
					fired[w.Device]++
				} else {
					w.Outcome.Timers = []dunlin.TimerSet{{Name: "noon", Due: dunlin.TimeOf(time.Date(2000, 1, 1, 12, 0, 0, 0, time.UTC))}}
				}
			}
		})
		defer n.close()
		b := newInbox(many)
		for i := range many {
			n.Ingest(uplinkIn("cold", in(3, i), uint64(i+1), b))
		}
		b.wait()
		after(12*time.Hour + time.Second)
		synctest.Wait()
		if len(fired) != many {
			t.Errorf("%d timers fired by a second past noon, want %d", len(fired), many)
		}
		for dev, times := range fired {
			if times != 1 {
				t.Errorf("timer of %s fired %d times", dev, times)
			}
		}
	})
}

// PID{"dev", "<tenant>/<device>"} is a device, for whoever speaks protoactor.
func TestDeviceAddress(t *testing.T) {
	n := open(t, newStore(), nil)
	defer n.close()
	root, pid := n.System().Root, NewPID(key("virtual"))
	request := func(m any) any {
		t.Helper()
		answer, err := root.RequestFuture(pid, m, 5*time.Second).Result()
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	if a := request(&Ask{}).(*Answer); !errors.Is(a.Err, dunlin.ErrNotFound) {
		t.Errorf("before its first uplink: %+v", a)
	}
	if r := request(&Tell{uplink("ignored", 1, nil)}).(*Told).Receipt; r.Err != nil || r.Seq != 1 || !r.Created {
		t.Errorf("told %+v", r)
	}
	b := newInbox(1)
	root.Send(pid, &Tell{uplink("ignored", 2, b)})
	b.wait()
	if a := request(&Ask{}).(*Answer); a.Err != nil || a.Twin.Version != 2 || a.Twin.Device != "virtual" {
		t.Errorf("asked %+v", a)
	}
	pid = NewPID(key("bad name"))
	if r := request(&Tell{uplink("x", 3, nil)}).(*Told).Receipt; !errors.Is(r.Err, dunlin.ErrInvalid) {
		t.Errorf("told to a bad name: %+v", r)
	}
}

// With room for few cells the hand passivates, and what comes back knows what it was.
func TestPassivation(t *testing.T) {
	n := open(t, newStore(), func(_ *node, c *Config) { c.CellsMax = 40 })
	defer n.close()
	for round := range uint64(3) {
		for i := range 200 {
			if r := n.one(uplink(in(dunlin.ShardID(i%4), i/4), round*1000+uint64(i)+1, nil)); r.Err != nil || r.Seq != round+1 {
				t.Fatalf("round %d: %+v", round, r)
			}
		}
		if c := n.active.Load(); c > 44 {
			t.Errorf("%d active cells, want about 40", c)
		}
	}
	if n.store.loads < 500 {
		t.Errorf("%d loads", n.store.loads)
	}
}

// Changes of the registry go through the shard's actor: one after the other, and not during a turn of their device.
func TestUpdates(t *testing.T) {
	n := open(t, newStore(), nil)
	defer n.close()
	dev := key("a")
	s := n.cfg.ShardOf(dev)
	n.one(uplink("a", 1, nil))
	errs := make(chan error)
	for range 20 { // each reads what the one before wrote
		go func() {
			errs <- n.Update(t.Context(), s, nil, func(dunlin.Time, *dunlin.DeviceState) ([]dunlin.Put, error) {
				n.store.mu.Lock()
				defer n.store.mu.Unlock()
				return []dunlin.Put{{Table: "domains", Key: "default/x", Value: append(n.store.rows["domains/default/x"], '.')}}, nil
			})
		}()
	}
	for range 20 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if got := len(n.store.rows["domains/default/x"]); got != 20 {
		t.Errorf("%d of 20 updates are in the row", got)
	}
	refused := errors.New("refused")
	err := n.Update(t.Context(), s, &dev, func(_ dunlin.Time, st *dunlin.DeviceState) ([]dunlin.Put, error) {
		if st == nil || st.Version != 1 {
			t.Errorf("state %+v", st)
		}
		return nil, refused
	})
	wantErr(t, "refused by its builder", err, refused)
	err = n.Update(t.Context(), s, &dev, func(dunlin.Time, *dunlin.DeviceState) ([]dunlin.Put, error) {
		return []dunlin.Put{{Table: dunlin.TableDevices, Key: dev.String()}}, nil
	})
	wantErr(t, "delete", err, nil)
	if r := n.one(uplink("a", 2, nil)); r.Err != nil || r.Seq != 1 || !r.Created {
		t.Errorf("after the device was deleted: %+v", r)
	}
	n.Disown(s)
	wantErr(t, "disowned", n.Update(t.Context(), s, nil, nil), dunlin.ErrNotOwner)
}

// Close lets commits in flight finish, refuses what comes, and at its deadline tells what is left.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := open(t, newStore(), func(n *node, _ *Config) { n.log.hand = true })
		b := newInbox(3)
		n.send(uplink("a", 1, b))
		synctest.Wait()
		n.send(uplink("a", 2, b))
		closed := make(chan error)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go func() { closed <- n.Close(ctx) }()
		synctest.Wait()
		n.send(uplink("a", 3, b))
		wantErr(t, "while closing", b.answers()[3].Err, dunlin.ErrUnavailable)
		n.log.take()[0].commit(n.store)
		synctest.Wait()
		if r := b.answers()[1]; r.Err != nil || r.Seq != 1 {
			t.Errorf("in flight while closing: %+v", r)
		}
		late := n.log.take()
		if err := <-closed; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("close: %v", err)
		}
		wantErr(t, "at the deadline", b.answers()[2].Err, dunlin.ErrUnavailable)
		late[0].commit(n.store) // too late for anybody to hear
	})
}

func TestHistoryGoesToTheStore(t *testing.T) {
	n := open(t, newStore(), nil)
	defer n.close()
	all, _ := n.Alerts(t.Context(), dunlin.AlertsQuery{})
	one, _ := n.Alerts(t.Context(), dunlin.AlertsQuery{Tenant: "default", Device: dunlin.DeviceID(in(2, 0))})
	if all.Next != "[0 1 2 3]" || one.Next != "[2]" {
		t.Errorf("alerts are asked of %s and %s", all.Next, one.Next)
	}
	if l, _ := n.DeadLetters(t.Context(), dunlin.DeadLettersQuery{}); len(l.Letters) != 4 {
		t.Errorf("dead letters are asked of %d shards", len(l.Letters))
	}
	if _, err := n.Readings(t.Context(), dunlin.ReadingsQuery{DeviceKey: key("a")}); err != nil {
		t.Error(err)
	}
}
