package actors

import (
	"fmt"
	"testing"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/device"
	"github.com/dunlin-iot/dunlin/actors/trial"
)

// trialNode has a domain whose plugin raises above 8, and a candidate that raises above another limit.
func trialNode(t *testing.T, limit float64, tr dunlin.Trial) (*node, *trial.Book) {
	active, candidate := dunlin.ModuleHash{1}, dunlin.ModuleHash{2}
	tr.ID, tr.Hash = "T", candidate
	n := open(t, newStore(), func(n *node, _ *Config) {
		n.rules["cold"] = &device.Rules{Tenant: "default", Domain: "cold", Register: true, Stages: []dunlin.Stage{{Plugin: "p", Hash: active,
			Trial: &dunlin.StageTrial{Trial: tr}}}}
		n.labels = func(key dunlin.DeviceKey) map[string]string {
			if key.Device == "d1" {
				return map[string]string{"hall": "north"}
			}
			return nil
		}
		n.plugin.of = func(st *dunlin.Stage, works []*dunlin.Work) {
			above := 8.0
			if st.Hash == candidate {
				above = limit
			}
			for _, w := range works {
				w.Outcome = dunlin.Outcome{FuelUsed: 10, State: append([]byte(nil), append(w.State, st.Hash[0])...)}
				for i, in := range w.Inputs {
					if v := in.Records[0].Num; v != v {
						w.Outcome = dunlin.Outcome{Failure: "NaN", FuelUsed: 10}
					} else {
						w.Outcome.Signals = append(w.Outcome.Signals, dunlin.AlertSignal{Input: i, Raise: v > above, Severity: dunlin.Major, Rule: "warm"})
					}
				}
			}
		}
	})
	return n, n.deps.Trials
}

func (n *node) report(dev string, tag uint64, v float64) {
	n.t.Helper()
	u := uplinkIn("cold", dev, tag, nil)
	u.Records[0].Num = v
	if r := n.one(u); r.Err != nil {
		n.t.Errorf("%s: %v", dev, r.Err)
	}
}

// TestAShadowHasNoEffects: the candidate sees the same inputs with a state of its own, and only counts come of it.
func TestAShadowHasNoEffects(t *testing.T) {
	n, book := trialNode(t, 6, dunlin.Trial{Kind: dunlin.TrialShadow})
	defer n.close()
	for i, v := range []float64{5, 7, 9, 7, 5, 9} {
		n.report("d1", uint64(i+1), v)
	}
	c := book.Counts("T")
	if c.Candidate.Inputs != 6 || c.Active.Inputs != 6 || c.Candidate.Alerts != 2 || c.Active.Alerts != 2 || c.Candidate.Fuel != 60 {
		t.Errorf("counts %+v", c)
	}
	// At 7 the candidate raises and the active version doesn't; at 9 it is the other way round; the next 7 clears one alone.
	if c.AlertsOnly != 1 || c.AlertsMissing != 1 || c.Same != 3 || c.Differ != 3 {
		t.Errorf("differences %+v", c)
	}
	st, _, _ := n.store.LoadDevice(shardOf(key("d1")), key("d1"))
	if len(st.Alerts) != 1 || string(st.Plugins[0].State) != "\x01\x01\x01\x01\x01\x01" {
		t.Errorf("the device has %d alerts, state %q", len(st.Alerts), st.Plugins[0].State)
	}
}

// TestACanaryTakesTheActiveVersionsPlace, on the devices that it is for, and is named in what they do.
func TestACanaryTakesTheActiveVersionsPlace(t *testing.T) {
	n, book := trialNode(t, 6, dunlin.Trial{Kind: dunlin.TrialCanary, Labels: map[string]string{"hall": "north"}})
	defer n.close()
	n.report("d1", 1, 7)
	n.report("d2", 2, 7)
	n.report("d2", 3, 9)
	c := book.Counts("T")
	if c.Candidate.Inputs != 1 || c.Active.Inputs != 2 || c.Candidate.Alerts != 1 || c.Active.Alerts != 1 || c.Same+c.Differ != 0 {
		t.Errorf("counts %+v", c)
	}
	hashes := map[dunlin.DeviceID]byte{}
	for _, e := range n.store.entries {
		for _, ch := range e.Changes {
			hashes[ch.Device] = ch.Stages[0].Hash[0]
		}
	}
	if hashes["d1"] != 2 || hashes["d2"] != 1 {
		t.Errorf("entries name modules %v", hashes)
	}
	if st, _, _ := n.store.LoadDevice(shardOf(key("d1")), key("d1")); len(st.Alerts) != 1 {
		t.Error("the canary's alert is not there")
	}
}

// TestAPluginIsToldOfItsDevice: registration and changes of it are inputs of turns of their own.
func TestAPluginIsToldOfItsDevice(t *testing.T) {
	var told []string
	n := open(t, newStore(), func(n *node, c *Config) {
		c.EntryVersion = func() uint32 { return 2 }
		n.plugin.f = func(_ dunlin.DomainID, _ int, _ dunlin.Time, w *dunlin.Work) {
			for _, in := range w.Inputs {
				if in.Kind == dunlin.InputLifecycle {
					told = append(told, string(in.Payload))
				}
			}
		}
	})
	k := key("d1")
	n.store.mu.Lock()
	n.store.devices[k] = &dunlin.DeviceState{DeviceKey: k, Domain: "cold"}
	n.store.mu.Unlock()
	err := n.Update(t.Context(), shardOf(k), &k, func(dunlin.Time, *dunlin.DeviceState) ([]dunlin.Put, error) {
		return []dunlin.Put{{Table: dunlin.TableDevices, Key: k.String(), Value: []byte(`{"id":"d1","domain":"cold","labels":{"hall":"north"}}`)}}, nil
	})
	wantErr(t, "update", err, nil)
	n.settle(func() bool { return n.store.inputs() == 1 })
	if r := n.one(uplink("d1", 1, nil)); r.Err != nil || r.Seq != 2 {
		t.Errorf("the uplink after it: %+v", r)
	}
	n.close()
	if len(told) != 1 || told[0] != `{"event":"changed","domain":"cold","labels":{"hall":"north"}}` {
		t.Errorf("told %q", told)
	}
}

// TestStagesSeeWhatTheySay: derived readings of all stages before, of some, or of none.
func TestStagesSeeWhatTheySay(t *testing.T) {
	seen := map[int][]string{}
	n := open(t, newStore(), func(n *node, _ *Config) {
		n.rules["chain"] = &device.Rules{Domain: "chain", Register: true, Stages: []dunlin.Stage{
			{Plugin: "a"}, {Plugin: "b"}, {Plugin: "c", Sees: []int{1}}, {Plugin: "d", Sees: []int{}}, {Plugin: "e"}}}
		n.plugin.f = func(_ dunlin.DomainID, stage int, _ dunlin.Time, w *dunlin.Work) {
			for _, r := range w.Inputs[0].Records {
				seen[stage] = append(seen[stage], r.Metric)
			}
			if stage < 3 {
				w.Outcome.Records = []dunlin.Record{{Metric: string(rune('a' + stage)), Kind: dunlin.Number, Num: 1}}
			}
		}
	})
	defer n.close()
	if r := n.one(uplinkIn("chain", "d1", 1, nil)); r.Err != nil {
		t.Fatal(r.Err)
	}
	for stage, want := range []string{"[temperature]", "[temperature a]", "[temperature b]", "[temperature]", "[temperature a b c]"} {
		if got := fmt.Sprint(seen[stage]); got != want {
			t.Errorf("stage %d sees %s, want %s", stage, got, want)
		}
	}
}
