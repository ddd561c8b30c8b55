package main_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// on says whether a member has a replica of the shard.
func on(sh *dunlin.ShardReplicas, name string) bool {
	return slices.ContainsFunc(sh.Replicas, func(r dunlin.Replica) bool { return r.Name == name })
}

// warm has a device report five high temperatures through a node; the rule raises its alert at the fifth.
func warm(t *testing.T, n *node, device string) {
	t.Helper()
	for range 5 {
		post(t, n, device, `{"temp": 9.5}`)
	}
}

// alerted checks that a device has its one alert, asked at a node.
func alerted(t *testing.T, n *node, device string) {
	t.Helper()
	if got := transitions(t, n, device); len(got) != 1 || got[0].state != dunlin.AlertRaised {
		t.Errorf("%s has the alerts %+v, want one that was raised", device, got)
	}
}

// Five nodes with three replicas of each shard: what is pushed, put or asked at any of them is so at all of them, also at one
// that comes later, and after the one it was said to has died.
func TestFiveNodesWithThreeReplicas(t *testing.T) {
	began := time.Now()
	h := gather(t, "a", "b", "c", "d")
	t.Logf("four nodes after %v", time.Since(began).Round(time.Millisecond))
	for _, n := range h.nodes {
		if ids, missing := n.fleetOf(t, "leader", 100); len(ids)+len(missing) > 0 {
			t.Fatalf("a new cluster has devices %v and lacks shards %v", ids, missing)
		}
	}
	t.Run("registry", h.registry)
	began = time.Now()
	h.add("e")
	h.wait("e", "five members", func(st *dunlin.ClusterStatus) bool {
		return st.Healthy && st.Members == 5 && st.Alive == 5 && len(st.Moves) == 0 && h.owns("e")
	})
	t.Logf("a fifth one has its share after %v", time.Since(began).Round(time.Millisecond))
	t.Run("a node that came later", h.latecomer)
	t.Run("asked where no replica is", h.elsewhere)
	t.Run("two nodes die", h.twoDie)
}

// owns says whether a member owns a shard.
func (h *herd) owns(name string) bool {
	owned := ownedBy(name)
	list := h.nodes["a"].shards()
	return slices.ContainsFunc(list, func(sh dunlin.ShardReplicas) bool { return owned(&sh) })
}

func (h *herd) registry(t *testing.T) {
	var st dunlin.ClusterStatus
	h.nodes["a"].get("/v1/cluster", &st)
	var others []*node // than the owner of the registry
	var members struct{ Items []dunlin.Member }
	h.nodes["a"].get("/v1/cluster/members", &members)
	for _, m := range members.Items {
		if m.ID != st.Controller && m.Name != "d" {
			others = append(others, h.nodes[m.Name])
		}
	}
	h.rule(others[0])
	for name, n := range h.nodes { // at once
		warm(t, n, "reg-"+name)
	}
	for name := range h.nodes {
		alerted(t, others[1], "reg-"+name)
	}

	for i, name := range []string{"a", "b", "c", "d"} { // each says it to one and asks at the next
		n, next := h.nodes[name], h.nodes[[]string{"b", "c", "d", "a"}[i]]
		device, limit := "strict-"+name, []int{8, 20}[i%2]
		h.put(n, "/v1/domains/strict", fmt.Sprintf(`{"unknown_devices":"reject","description":"change %s","owner":"you",
			"pipeline":[{"plugin":"cold-chain","config":{"max":%d,"clear_below":7,"silent_minutes":1440,"door_open_minutes":600}}]}`, name, limit))
		var d dunlin.Domain
		next.get("/v1/domains/strict", &d)
		if d.Description != "change "+name {
			t.Errorf("a change at %s is not seen at the next node: %+v", name, d)
		}
		if out := command(t, h.bin, "device", "add", device, "--domain", "strict", "--server", "http://"+n.HTTP); !strings.Contains(out, "revision 1") {
			t.Errorf("device add: %s", out)
		}
		warm(t, next, device)
		if got := transitions(t, n, device); (len(got) == 1) != (limit == 8) {
			t.Errorf("with a limit of %d, put at %s, %s has the alerts %+v", limit, name, device, got)
		}
		command(t, h.bin, "device", "remove", device, "--server", "http://"+next.HTTP)
		if resp, body, _ := n.ask(t, "/v1/devices/"+device); resp.StatusCode != 404 {
			t.Errorf("a removed device: %s %s", resp.Status, body)
		}
	}
	wasm := filepath.Join("internal", "builtin", "modules", "cold-chain.wasm")
	command(t, h.bin, "plugin", "push", wasm, "--name", "second", "--server", "http://"+h.nodes["d"].HTTP)
	for name, n := range h.nodes {
		if resp, body, _ := n.ask(t, "/v1/plugins/second"); resp.StatusCode != 200 {
			t.Errorf("a plugin pushed at d, asked at %s: %s %s", name, resp.Status, body)
		}
	}
}

func (h *herd) latecomer(t *testing.T) {
	e := h.nodes["e"]
	device := deviceWhere(t, e, "late", 16, ownedBy("e")) + "-00"
	warm(t, h.nodes["b"], device) // runs on e
	alerted(t, h.nodes["c"], device)

	h.nodes["d"].kill() // where the second plugin was pushed, and nobody ran it yet
	domain := `{"unknown_devices":"register","description":"boxes","owner":"you",
		"pipeline":[{"plugin":"second","config":{"max":8,"clear_below":7,"silent_minutes":1440,"door_open_minutes":600}}]}`
	h.put(e, "/v1/domains/cold-chain", domain)
	for _, name := range []string{"a", "b", "c", "e"} {
		device := deviceWhere(t, e, "orphan-"+name, 16, ownedBy(name)) + "-00"
		warm(t, h.nodes["a"], device)
		alerted(t, e, device)
	}
	h.add("d")
	h.wait("a", "whole cluster", func(st *dunlin.ClusterStatus) bool { return st.Healthy && st.Alive == 5 })
}

func (h *herd) elsewhere(t *testing.T) {
	coap := foreign(t, "coap-client-notls", "coap-client")
	for name, n := range h.nodes {
		device := deviceWhere(t, n, "far-"+name, 16, func(sh *dunlin.ShardReplicas) bool { return !on(sh, name) }) + "-00"
		publish(t, n, device, 1, 5)
		out := command(t, coap, "-v", "6", "-m", "post", "-t", "110", "-e", `[{"n":"temp","v":6}]`, "coap://"+n.CoAP+"/d/"+device+"/t")
		if !strings.Contains(out, "2.04") {
			t.Errorf("CoAP POST at %s, which has no replica: %s", name, out)
		}
		out = command(t, coap, "-m", "get", "-A", "50", "coap://"+n.CoAP+"/d/"+device+"/s")
		if !strings.Contains(out, `"temp":6`) {
			t.Errorf("CoAP GET at %s, which has no replica: %s", name, out)
		}
		var hist struct{ Readings []struct{ Value float64 } }
		n.get("/v1/devices/"+device+"/readings", &hist)
		if len(hist.Readings) != 6 || hist.Readings[0].Value != 1 || hist.Readings[5].Value != 6 {
			t.Errorf("history at %s, which has no replica: %+v", name, hist)
		}
		warm(t, n, device)
		alerted(t, n, device)
		var tw twin
		n.get("/v1/devices/"+device+"/state?read=stale=10s", &tw)
		if tw.Version != 11 {
			t.Errorf("twin at %s, which has no replica: %+v", name, tw)
		}
	}
}

func (h *herd) twoDie(t *testing.T) {
	a := h.nodes["a"]
	all, _ := a.fleetOf(t, "leader", 100)
	var lost []dunlin.ShardID // with two of three replicas on those that die
	for _, sh := range a.shards() {
		if on(&sh, "d") && on(&sh, "e") && sh.Shard != dunlin.MetaShard {
			lost = append(lost, sh.Shard)
		}
	}
	h.nodes["d"].kill()
	h.nodes["e"].kill()
	for _, name := range []string{"b", "c"} {
		n := h.nodes[name]
		var ids []string
		var missing []dunlin.ShardID
		until(t, "only the shards without a majority are missing", func() bool {
			ids, missing = n.fleetOf(t, "leader", 100)
			return slices.Equal(missing, lost)
		})
		if !slices.Equal(missing, lost) {
			t.Errorf("at %s the shards %v are missing, want %v", name, missing, lost)
		}
		if len(lost) > 0 && len(ids) >= len(all) {
			t.Errorf("at %s the list has %d of %d devices with shards %v missing", name, len(ids), len(all), missing)
		}
	}
	ids, missing := a.fleetOf(t, "stale=1m", 7)
	if len(missing) > 0 || !slices.Equal(ids, all) {
		t.Errorf("at level stale=1m %d of %d devices are listed, shards %v missing", len(ids), len(all), missing)
	}
	t.Logf("shards %v without a majority, %d devices", lost, len(all))
}
