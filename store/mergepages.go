package store

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/dunlin-iot/dunlin"
)

// MergeAlerts makes one page of pages of disjoint shards, as Alerts would have made it if they were all here: in the same order,
// with a cursor that every node understands. q is the query that they answer. What a page with a next one says ends at its
// cursor, so the merged one ends at the first of those.
func (s *State) MergeAlerts(pages []*dunlin.AlertsPage, q dunlin.AlertsQuery) (*dunlin.AlertsPage, error) {
	type found struct {
		order []byte
		alert dunlin.Alert
	}
	var all []found
	var end []byte
	for _, p := range pages {
		if p.Next != "" {
			at, err := parsePageCursor(cursorAlerts, p.Next)
			if err != nil {
				return nil, err
			}
			if end == nil || bytes.Compare(at, end) < 0 {
				end = at
			}
		}
		for i := range p.Alerts {
			all = append(all, found{alertOrder(&p.Alerts[i]), p.Alerts[i]})
		}
	}
	slices.SortFunc(all, func(a, b found) int { return bytes.Compare(a.order, b.order) })
	if end != nil {
		n, _ := slices.BinarySearchFunc(all, end, func(f found, at []byte) int {
			return cmp.Or(bytes.Compare(f.order, at), -1) // behind what lies at the end itself
		})
		all = all[:n]
	}
	page := &dunlin.AlertsPage{}
	if limit := limitOf(q.Limit, 100, 1000); len(all) > limit {
		all, end = all[:limit], all[limit-1].order
	}
	for i := range all {
		page.Alerts = append(page.Alerts, all[i].alert)
	}
	if end != nil {
		page.Next = pageCursor(cursorAlerts, end)
	}
	return page, nil
}

// alertOrder is what orders alerts among shards: the part of their keys that a cursor has.
func alertOrder(al *dunlin.Alert) []byte {
	place := alertPlace{time: al.At, cleared: al.State == dunlin.AlertCleared}
	return appendAlertTime(nil, 0, al, place)[len(appendAlertTimeHead(nil, 0, al.Tenant, place.cleared)):]
}
