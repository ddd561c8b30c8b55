package store

import (
	"bytes"
	"cmp"
	"container/heap"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/entry"
)

// alertsScanMax bounds how many alerts one call looks at: a filter that few pass gets short pages, not a long wait.
const alertsScanMax = 50_000

// appendAlertValue is an alert as its two rows have it: a version and an entry with one change that has the alert.
func appendAlertValue(dst []byte, al *dunlin.Alert) []byte {
	return entry.Append(append(dst, opVersion), &dunlin.Entry{At: al.At, Changes: []dunlin.Change{{
		DeviceKey: dunlin.DeviceKey{Tenant: al.Tenant, Device: al.Device}, Domain: al.Domain, Alerts: []dunlin.Alert{*al}}}})
}

// cutAlert reads what appendAlertValue wrote. The alert is a copy.
func cutAlert(v []byte) (alertPlace, *dunlin.Alert, error) {
	if len(v) == 0 || v[0] != opVersion {
		return alertPlace{}, nil, fmt.Errorf("%w: alert row of %d bytes", dunlin.ErrInvalid, len(v))
	}
	e, err := entry.Decode(bytes.Clone(v[1:]))
	if err != nil {
		return alertPlace{}, nil, err
	}
	if len(e.Changes) != 1 || len(e.Changes[0].Alerts) != 1 {
		return alertPlace{}, nil, fmt.Errorf("%w: alert row without its alert", dunlin.ErrInvalid)
	}
	al := &e.Changes[0].Alerts[0]
	return alertPlace{time: al.At, cleared: al.State == dunlin.AlertCleared}, al, nil
}

// Alerts lists alerts of some shards (nil: all), newest transition first over all of them. An empty tenant means the
// default one. A page may be short of its limit and still have a Next.
func (s *State) Alerts(shards []dunlin.ShardID, q dunlin.AlertsQuery) (*dunlin.AlertsPage, error) {
	q.Limit = limitOf(q.Limit, 100, 1000)
	q.Tenant = cmp.Or(q.Tenant, dunlin.DefaultTenant)
	var from []byte
	var err error
	if q.Cursor != "" {
		if from, err = parsePageCursor(cursorAlerts, q.Cursor); err != nil {
			return nil, err
		}
	}
	shards, err = s.those(shards)
	if err != nil {
		return nil, err
	}
	var page *dunlin.AlertsPage
	if q.Device != "" {
		page, err = s.alertsOfDevice(shards, q, from)
	} else {
		page, err = s.alertsByTime(shards, q, from)
	}
	if err != nil {
		return nil, fmt.Errorf("alerts: %w", err)
	}
	return page, nil
}

// those checks a list of shards; nil stands for all.
func (s *State) those(shards []dunlin.ShardID) ([]dunlin.ShardID, error) {
	if shards == nil {
		for i := range s.shards {
			shards = append(shards, dunlin.ShardID(i))
		}
	}
	for _, sh := range shards {
		if err := s.check(sh); err != nil {
			return nil, err
		}
	}
	return shards, nil
}

func limitOf(limit, zero, most int) int {
	if limit <= 0 {
		return zero
	}
	return min(limit, most)
}

func alertMatches(q *dunlin.AlertsQuery, al *dunlin.Alert) bool {
	return (q.Domain == "" || q.Domain == al.Domain) && (q.State == 0 || q.State == al.State) &&
		(!q.Active || al.State != dunlin.AlertCleared) && al.Severity >= q.Severity
}

// alertRun is one sorted run of alerts: a shard's active or cleared ones.
type alertRun struct {
	it   *pebble.Iterator
	head int // bytes of the key before what orders alerts among runs
}

func (r *alertRun) order() []byte { return r.it.Key()[r.head:] }

// alertRuns is a heap of runs, the one with the newest alert on top.
type alertRuns []*alertRun

func (h alertRuns) Len() int           { return len(h) }
func (h alertRuns) Less(i, j int) bool { return bytes.Compare(h[i].order(), h[j].order()) < 0 }
func (h alertRuns) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *alertRuns) Push(x any) { *h = append(*h, x.(*alertRun)) }

// Pop implements heap.Interface.
func (h *alertRuns) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

func (s *State) alertsByTime(shards []dunlin.ShardID, q dunlin.AlertsQuery, from []byte) (page *dunlin.AlertsPage, err error) {
	var runs alertRuns
	var open []*pebble.Iterator
	defer func() {
		for _, it := range open {
			err = cmp.Or(err, it.Close())
		}
	}()
	for _, sh := range shards {
		for _, cleared := range []bool{false, true} {
			if cleared && q.Active || cleared && q.State != 0 && q.State != dunlin.AlertCleared ||
				!cleared && q.State == dunlin.AlertCleared {
				continue
			}
			head := appendAlertTimeHead(nil, sh, q.Tenant, cleared)
			it, err := s.eng.NewIter(&pebble.IterOptions{LowerBound: head, UpperBound: after(head)})
			if err != nil {
				return nil, err
			}
			open = append(open, it)
			run := &alertRun{it: it, head: len(head)}
			ok := it.SeekGE(append(slices.Clip(head), from...))
			if ok && len(from) > 0 && bytes.Equal(run.order(), from) {
				ok = it.Next()
			}
			if ok {
				runs = append(runs, run)
			} else if err := it.Error(); err != nil {
				return nil, err
			}
		}
	}
	heap.Init(&runs)
	return mergeAlerts(&runs, &q)
}

func mergeAlerts(runs *alertRuns, q *dunlin.AlertsQuery) (*dunlin.AlertsPage, error) {
	page := &dunlin.AlertsPage{}
	for scanned := 1; runs.Len() > 0; scanned++ {
		run := (*runs)[0]
		_, al, err := cutAlert(run.it.Value())
		if err != nil {
			return nil, err
		}
		if alertMatches(q, al) {
			page.Alerts = append(page.Alerts, *al)
		}
		full := len(page.Alerts) == q.Limit || scanned == alertsScanMax
		if full {
			page.Next = pageCursor(cursorAlerts, run.order())
		}
		if run.it.Next() {
			heap.Fix(runs, 0)
		} else {
			if err := run.it.Error(); err != nil {
				return nil, err
			}
			heap.Pop(runs)
		}
		if full {
			if runs.Len() == 0 {
				page.Next = ""
			}
			return page, nil
		}
	}
	return page, nil
}

// alertsOfDevice looks at all alerts of one device and keeps the newest.
func (s *State) alertsOfDevice(shards []dunlin.ShardID, q dunlin.AlertsQuery, from []byte) (*dunlin.AlertsPage, error) {
	type found struct {
		order []byte
		alert dunlin.Alert
	}
	var best []found
	trim := func() {
		slices.SortFunc(best, func(a, b found) int { return bytes.Compare(a.order, b.order) })
		best = best[:min(len(best), q.Limit+1)]
	}
	key := dunlin.DeviceKey{Tenant: q.Tenant, Device: q.Device}
	for _, sh := range shards {
		if s.shardOf != nil && s.shardOf(key) != sh {
			continue
		}
		head := appendDevice(nil, sh, tabAlert, key)
		var inner error
		err := s.keys(head, head, func(_, v []byte) bool {
			place, al, err := cutAlert(v)
			if err != nil {
				inner = err
				return false
			}
			order := appendAlertTime(nil, sh, al, place)[len(appendAlertTimeHead(nil, sh, q.Tenant, place.cleared)):]
			if alertMatches(&q, al) && (len(from) == 0 || bytes.Compare(order, from) > 0) {
				best = append(best, found{order, *al})
			}
			if len(best) > 4*q.Limit {
				trim()
			}
			return true
		})
		if err = cmp.Or(err, inner); err != nil {
			return nil, err
		}
	}
	trim()
	page := &dunlin.AlertsPage{}
	for i := range best {
		if i == q.Limit {
			page.Next = pageCursor(cursorAlerts, best[i-1].order)
			break
		}
		page.Alerts = append(page.Alerts, best[i].alert)
	}
	return page, nil
}
