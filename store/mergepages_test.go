package store

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
)

// TestMergedPagesAreOnePage: whatever nodes the shards are on, the pages that they make together are those of one node that has
// them all, and each other's cursors go on.
func TestMergedPagesAreOnePage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &State{}
		var all []dunlin.Alert
		for i := range rapid.IntRange(0, 40).Draw(t, "alerts") {
			state := rapid.SampledFrom([]dunlin.AlertState{dunlin.AlertRaised, dunlin.AlertCleared}).Draw(t, "state")
			all = append(all, dunlin.Alert{Tenant: "t", Device: dunlin.DeviceID(fmt.Sprintf("d%d", i)), Rule: "hot", State: state,
				At: dunlin.Time(rapid.Int64Range(1, 9).Draw(t, "at"))})
		}
		nodes := make([][]*dunlin.AlertsPage, rapid.IntRange(1, 4).Draw(t, "nodes")) // each alert is a page of its own at first
		for i := range all {
			n := rapid.IntRange(0, len(nodes)-1).Draw(t, "node")
			nodes[n] = append(nodes[n], &dunlin.AlertsPage{Alerts: all[i : i+1]})
		}
		limit := rapid.IntRange(1, 7).Draw(t, "limit")
		whole, err := s.MergeAlerts(append(flat(nodes), &dunlin.AlertsPage{}), dunlin.AlertsQuery{Limit: 1000})
		if err != nil || whole.Next != "" || len(whole.Alerts) != len(all) {
			t.Fatalf("the whole: %d of %d alerts, next %q, %v", len(whole.Alerts), len(all), whole.Next, err)
		}
		var got []dunlin.Alert
		for cursor, round := "", 0; ; round++ {
			if round > len(all)+1 {
				t.Fatal("the pages never end")
			}
			var pages []*dunlin.AlertsPage
			for _, n := range nodes {
				p, err := s.MergeAlerts(n, dunlin.AlertsQuery{Limit: 1000})
				if err != nil {
					t.Fatal(err)
				}
				pages = append(pages, behind(t, s, p, cursor, limit))
			}
			p, err := s.MergeAlerts(pages, dunlin.AlertsQuery{Limit: limit})
			if err != nil {
				t.Fatal(err)
			}
			if got = append(got, p.Alerts...); p.Next == "" {
				break
			}
			cursor = p.Next
		}
		for i := range got {
			if i >= len(whole.Alerts) || got[i].ID() != whole.Alerts[i].ID() {
				t.Fatalf("alert %d is %s", i, got[i].ID())
			}
		}
		if len(got) != len(whole.Alerts) {
			t.Fatalf("%d alerts of %d", len(got), len(whole.Alerts))
		}
	})
}

func flat(nodes [][]*dunlin.AlertsPage) (all []*dunlin.AlertsPage) {
	for _, n := range nodes {
		all = append(all, n...)
	}
	return all
}

// behind is what a node with these alerts answers behind a cursor.
func behind(t *rapid.T, s *State, p *dunlin.AlertsPage, cursor string, limit int) *dunlin.AlertsPage {
	rest := p.Alerts
	if cursor != "" {
		at, err := parsePageCursor(cursorAlerts, cursor)
		if err != nil {
			t.Fatal(err)
		}
		for len(rest) > 0 && string(alertOrder(&rest[0])) <= string(at) {
			rest = rest[1:]
		}
	}
	out, err := s.MergeAlerts([]*dunlin.AlertsPage{{Alerts: rest}}, dunlin.AlertsQuery{Limit: limit})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
