package router

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// TestOneDevice: a replica here answers, once it is fresh enough; without one the owner is asked, and another if that is silent.
func TestOneDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newRealm(t, 5)
		k := devIn(0, 0) // shard 0 is on nodes 1, 2 and 3
		nan := math.NaN()
		m.states[k] = &dunlin.DeviceState{DeviceKey: k, Domain: "plain", Version: 7, Reported: []dunlin.Record{{Metric: "t", Kind: dunlin.Number, Num: nan}},
			Alerts: []dunlin.Alert{{Tenant: "default", Device: k.Device, Rule: "hot", Value: &nan}}}
		twin := func(node dunlin.NodeID, level dunlin.ReadLevel) error {
			tw, err := m.nodes[node].router.Twin(dunlin.WithReadLevel(t.Context(), level), k)
			if err == nil && (tw.Version != 7 || !math.IsNaN(tw.Reported["t"].Value.(float64)) || !math.IsNaN(*tw.Alerts[0].Value)) {
				t.Errorf("twin %+v", tw)
			}
			return err
		}
		leader, stale := dunlin.ReadLevel{}, dunlin.ReadLevel{Stale: 10 * time.Second}
		if err := twin(2, leader); err != nil || len(m.took()) > 0 || m.nodes[2].reads != 1 {
			t.Errorf("a follower at level leader: %v, %d ReadIndex", err, m.nodes[2].reads)
		}
		if err := twin(2, stale); err != nil || len(m.took()) > 0 || m.nodes[2].reads != 1 {
			t.Errorf("a follower at level stale: %v, %d ReadIndex", err, m.nodes[2].reads)
		}
		m.nodes[2].lag = time.Minute
		if err := twin(2, stale); err != nil || m.nodes[2].reads != 2 {
			t.Errorf("a follower that lags: %v, %d ReadIndex", err, m.nodes[2].reads)
		}
		if err := twin(5, leader); err != nil || !slices.Equal(m.took(), []string{"5>1 ask/twin"}) {
			t.Errorf("a node without a replica: %v", err)
		}
		m.silence(true, 1)
		began := time.Now()
		if err := twin(5, leader); err != nil || !slices.Equal(m.took(), []string{"5>1 ask/twin", "5>2 ask/twin"}) || time.Since(began) != 3*time.Second {
			t.Errorf("a silent owner: %v after %v", err, time.Since(began))
		}
		m.silence(true, 2, 3)
		if err := twin(5, leader); !errors.Is(err, dunlin.ErrUnavailable) || len(m.took()) != 2 {
			t.Errorf("all silent: %v", err)
		}
		m.owner[0] = 0 // an election that does not end
		if err := twin(3, leader); !errors.Is(err, dunlin.ErrUnavailable) {
			t.Errorf("no owner, level leader: %v", err)
		}
		if err := twin(3, stale); err != nil {
			t.Errorf("no owner, level stale: %v", err)
		}
		m.silence(false, 2)
		if _, err := m.nodes[5].router.Twin(dunlin.WithReadLevel(t.Context(), stale), devIn(1, 0)); !errors.Is(err, dunlin.ErrNotFound) {
			t.Errorf("a device that is not there: %v", err)
		}
	})
}

// TestLoneNode: a node that is alone asks nobody and waits for nothing.
func TestLoneNode(t *testing.T) {
	m := newRealm(t, 1)
	m.nodes[1].stuck = true
	r := m.nodes[1].router
	if _, err := r.Twin(t.Context(), devIn(3, 0)); !errors.Is(err, dunlin.ErrNotFound) {
		t.Error(err)
	}
	if _, err := r.Alerts(t.Context(), dunlin.AlertsQuery{}); err != nil {
		t.Error(err)
	}
	if _, err := r.PutDomain(t.Context(), dunlin.Domain{ID: "x"}, 0); err != nil {
		t.Error(err)
	}
	if _, err := r.Domain(t.Context(), "", "x"); err != nil {
		t.Error(err)
	}
	if m.nodes[1].reads > 0 || len(m.took()) > 0 {
		t.Errorf("%d ReadIndex, calls %v", m.nodes[1].reads, m.took())
	}
}

// TestReadingsTravel: all of the question and all of the answer.
func TestReadingsTravel(t *testing.T) {
	m := newRealm(t, 5)
	q := dunlin.ReadingsQuery{DeviceKey: devIn(0, 0), Metrics: []string{"temperature"}, From: math.MinInt64, To: math.MaxInt64, Newest: true, Limit: 17,
		Bucket: 3 * time.Hour}
	near, err := m.nodes[1].router.Readings(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	far, err := m.nodes[5].router.Readings(t.Context(), q)
	if err != nil || fmt.Sprintf("%+v", near) != fmt.Sprintf("%+v", far) {
		t.Errorf("%v\nnear %+v\n far %+v", err, near, far)
	}
	q.Cursor = "bad"
	if _, err := m.nodes[5].router.Readings(t.Context(), q); !errors.Is(err, dunlin.ErrInvalid) || len(m.took()) != 2 {
		t.Errorf("a bad cursor: %v", err)
	}
}

// TestFleet: whichever node is asked, the pages are the same; what does not answer is missing, and said so.
func TestFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newRealm(t, 5)
		for i := range 40 {
			k := dunlin.DeviceKey{Tenant: "default", Device: dunlin.DeviceID(fmt.Sprintf("d%02d", i))}
			m.alerts = append(m.alerts, dunlin.Alert{Tenant: k.Tenant, Device: k.Device, Rule: "hot", Severity: dunlin.Major, State: dunlin.AlertRaised})
			m.devices[k] = dunlin.Device{Tenant: k.Tenant, ID: k.Device, Domain: "plain"}
			m.letters = append(m.letters, dunlin.DeadLetter{DeviceKey: k, At: dunlin.Time(i % 7), Seq: uint64(i), Reason: "trap", Input: fleet(1)[0].Input})
		}
		ask := func(node dunlin.NodeID) string {
			r := m.nodes[node].router
			var out []string
			for cursor := ""; ; {
				p, err := r.Alerts(t.Context(), dunlin.AlertsQuery{Limit: 7, Cursor: cursor})
				if err != nil || len(p.Missing) > 0 {
					t.Fatal(err, p)
				}
				for i := range p.Alerts {
					out = append(out, p.Alerts[i].ID())
				}
				if cursor = p.Next; cursor == "" {
					break
				}
			}
			for cursor := ""; ; {
				p, err := r.Devices(t.Context(), dunlin.DevicesQuery{Limit: 9, Cursor: cursor})
				if err != nil || len(p.Missing) > 0 {
					t.Fatal(err, p)
				}
				for i := range p.Devices {
					out = append(out, string(p.Devices[i].ID))
				}
				if cursor = p.Next; cursor == "" {
					break
				}
			}
			p, err := r.DeadLetters(t.Context(), dunlin.DeadLettersQuery{Limit: 12})
			if err != nil || len(p.Letters) != 12 || p.Letters[0].At != 6 || p.Letters[0].Input.Records[0].Metric != "temperature" {
				t.Fatal(err, p)
			}
			return fmt.Sprint(out, len(out))
		}
		want := ask(1)
		if !strings.HasSuffix(want, " 80") {
			t.Errorf("%s", want)
		}
		for node := range m.nodes {
			if got := ask(node); got != want {
				t.Errorf("node %d answers\n%s\nnode 1\n%s", node, got, want)
			}
		}
		m.owner[1], m.owner[2] = 0, 0 // nobody knows their newest, and all else is known at every node
		for id, n := range m.nodes {
			p, err := n.router.Devices(t.Context(), dunlin.DevicesQuery{Limit: 100})
			if err != nil || len(p.Missing) != 2 || p.Missing[0].Shard != 1 || p.Missing[1].Shard != 2 {
				t.Errorf("two shards without an owner, asked at node %d: %v, missing %+v", id, err, p.Missing)
			}
		}
		m.owner[1], m.owner[2] = m.replicas[1][0], m.replicas[2][0]
		m.took()
		m.silence(true, 3) // its shards have replicas elsewhere
		if p, err := m.nodes[1].router.Alerts(t.Context(), dunlin.AlertsQuery{Limit: 100}); err != nil || len(p.Alerts) != 40 || len(p.Missing) > 0 {
			t.Errorf("one node silent: %v, %+v", err, p.Missing)
		}
		m.silence(true, 2, 3, 4, 5)
		p, err := m.nodes[1].router.Alerts(t.Context(), dunlin.AlertsQuery{Limit: 100})
		if err != nil || len(p.Missing) != 4 || p.Missing[0].Reason == "" {
			t.Errorf("all others silent: %v, %+v", err, p)
		}
		for _, a := range p.Alerts {
			if sh := shardOf(dunlin.DeviceKey{Tenant: a.Tenant, Device: a.Device}); slices.ContainsFunc(p.Missing, func(m dunlin.MissingShard) bool { return m.Shard == sh }) {
				t.Errorf("an alert of shard %d, which is missing", sh)
			}
		}
		m.nodes[1].stuck = true
		if _, err := m.nodes[1].router.Alerts(t.Context(), dunlin.AlertsQuery{}); !errors.Is(err, dunlin.ErrUnavailable) {
			t.Errorf("nobody answers: %v", err)
		}
	})
}
