package main_test

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// ask is a GET of which any answer will do; it returns how long that took, too.
func (n *node) ask(t *testing.T, path string) (resp *http.Response, body string, took time.Duration) {
	t.Helper()
	began := time.Now()
	resp, err := http.Get("http://" + n.HTTP + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b), time.Since(began)
}

// page is what a list of devices says.
type page struct {
	Items   []struct{ ID string }
	Next    string
	Missing []dunlin.MissingShard
}

// fleetOf asks for all devices, page by page, and says which shards did not answer.
func (n *node) fleetOf(t *testing.T, level string, limit int) (ids []string, missing []dunlin.ShardID) {
	t.Helper()
	for next := fmt.Sprintf("/v1/devices?limit=%d&read=%s", limit, level); next != ""; {
		resp, body, _ := n.ask(t, next)
		var p page
		if err := json.Unmarshal([]byte(body), &p); err != nil || resp.StatusCode != 200 {
			t.Fatalf("GET %s: %s %s", next, resp.Status, body)
		}
		for _, d := range p.Items {
			ids = append(ids, d.ID)
		}
		for _, m := range p.Missing {
			if !slices.Contains(missing, m.Shard) {
				missing = append(missing, m.Shard)
			}
			if m.Reason == "" {
				t.Errorf("shard %d is missing without a reason", m.Shard)
			}
		}
		next = p.Next
	}
	slices.Sort(missing)
	return ids, missing
}

// What was acknowledged at one node is there when another one is asked at once. A node that is left alone says that it does
// not know (503, and when to come again), unless it was asked for what it knew a while ago.
func TestReadsHoldWhatWasAcknowledged(t *testing.T) {
	h := gather(t, "a", "b", "c")
	a, b, c := h.nodes["a"], h.nodes["b"], h.nodes["c"]
	h.rule(a)
	nodes := []*node{a, b, c}
	const devices = 20
	versions := map[string]uint64{}
	began := time.Now()
	for i := range 200 {
		device := fmt.Sprintf("rd-%02d", i%devices)
		at := rand.IntN(3)
		post(t, nodes[at], device, fmt.Sprintf(`{"temp": %d}`, i))
		versions[device]++
		asked := nodes[(at+1+rand.IntN(2))%3]
		var tw twin
		asked.get("/v1/devices/"+device+"/state?read=leader", &tw)
		if tw.Version != versions[device] || tw.Reported["temp"].Value != float64(i) {
			t.Errorf("after ack %d at another node: version %d and %v, want %d and %d", i, tw.Version, tw.Reported["temp"].Value, versions[device], i)
		}
		var hist struct {
			Readings []struct{ Value float64 }
		}
		asked.get("/v1/devices/"+device+"/readings?order=desc&limit=1&read=leader", &hist)
		if len(hist.Readings) != 1 || hist.Readings[0].Value != float64(i) {
			t.Errorf("after ack %d at another node the newest reading is %+v", i, hist.Readings)
		}
	}
	t.Logf("200 uplinks, each read twice elsewhere, took %v", time.Since(began).Round(time.Millisecond))
	for _, n := range nodes {
		if ids, missing := n.fleetOf(t, "leader", 7); len(ids) != devices || len(missing) > 0 {
			t.Errorf("%d devices, shards %v missing", len(ids), missing)
		}
	}

	b.kill()
	c.kill()
	cut := time.Now()
	const one = "/v1/devices/rd-07/state?read="
	if resp, body, _ := a.ask(t, one+"stale=10s"); resp.StatusCode != 200 || resp.Header.Get("Dunlin-Read") != "stale=10s" || !strings.Contains(body, `187`) {
		t.Errorf("stale=10s at a node left alone: %s %q %s", resp.Status, resp.Header.Get("Dunlin-Read"), body)
	}
	if ids, missing := a.fleetOf(t, "stale=10s", 7); len(ids) != devices || len(missing) > 0 {
		t.Errorf("stale=10s at a node left alone: %d devices, shards %v missing", len(ids), missing)
	}
	refused := func(path string) bool {
		t.Helper()
		resp, body, took := a.ask(t, path)
		if resp.StatusCode == 200 {
			return false
		}
		if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.Contains(resp.Header.Get("Content-Type"), "problem+json") {
			t.Errorf("GET %s at a node left alone: %s, Retry-After %q\n%s", path, resp.Status, resp.Header.Get("Retry-After"), body)
		}
		t.Logf("GET %s was refused %v after the others' death, in %v", path, time.Since(cut).Round(time.Millisecond), took.Round(time.Millisecond))
		return true
	}
	if !refused(one + "leader") {
		t.Error("a node left alone claims to know the newest")
	}
	until(t, "stale=2s is refused", func() bool { return refused(one + "stale=2s") })
	if !refused("/v1/devices?read=stale=2s") {
		t.Error("a node that was alone for longer lists devices as of 2 s ago")
	}
	if ids, missing := a.fleetOf(t, "stale=1m", 7); len(ids) != devices || len(missing) > 0 {
		t.Errorf("stale=1m at a node left alone: %d devices, shards %v missing", len(ids), missing)
	}
}
