package gossip

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// Seen is a node as this one sees it.
type Seen struct {
	Self
	Alive bool
	Since dunlin.Time // when it came, or was found dead
	Addr  string      // where it gossips
}

// deadMax bounds how many dead a node remembers; the longest dead are forgotten first.
const deadMax = 1024

// view is the nodes seen. memberlist's delegate writes it with memberlist's lock held, so whoever holds this lock must not
// call memberlist.
type view struct {
	sync.Mutex
	keep   time.Duration
	by     map[dunlin.NodeID]*Seen
	living map[string]dunlin.NodeID // by name
}

func (v *view) init(keep time.Duration) {
	v.keep, v.by, v.living = keep, make(map[dunlin.NodeID]*Seen), make(map[string]dunlin.NodeID)
}

// came notes a node that is alive, and reports whether it was not before, or lives again. Another life under its name is over
// then.
func (v *view) came(s Self, addr string, now dunlin.Time) (news bool) {
	v.Lock()
	defer v.Unlock()
	if id, ok := v.living[s.Name]; ok && id != s.ID {
		v.goneLocked(s.Name, now)
	}
	was := v.by[s.ID]
	since := now
	if was != nil && was.Alive && was.Started == s.Started {
		since = was.Since
	}
	if was != nil && was.Alive && was.Name != s.Name {
		delete(v.living, was.Name)
	}
	v.by[s.ID] = &Seen{Self: s, Alive: true, Since: since, Addr: addr}
	v.living[s.Name] = s.ID
	return was == nil || !was.Alive || was.Started != s.Started
}

// gone notes that the node of that name is dead, or has left, and returns it, nil if it was not known to live.
func (v *view) gone(name string, now dunlin.Time) *Seen {
	v.Lock()
	defer v.Unlock()
	return v.goneLocked(name, now)
}

func (v *view) goneLocked(name string, now dunlin.Time) *Seen {
	id, ok := v.living[name]
	if !ok {
		return nil
	}
	delete(v.living, name)
	was := *v.by[id]
	was.Alive, was.Since = false, now
	v.by[id] = &was
	v.forgetLocked(now)
	return &was
}

func (v *view) forgetLocked(now dunlin.Time) {
	var oldest *Seen
	for id, s := range v.by {
		switch {
		case s.Alive:
		case now.Sub(s.Since) > v.keep:
			delete(v.by, id)
		case oldest == nil || s.Since < oldest.Since:
			oldest = s
		}
	}
	if oldest != nil && len(v.by)-len(v.living) > deadMax {
		delete(v.by, oldest.ID)
	}
}

func (v *view) list(now dunlin.Time) []Seen {
	v.Lock()
	defer v.Unlock()
	v.forgetLocked(now)
	all := make([]Seen, 0, len(v.by))
	for _, s := range v.by {
		all = append(all, *s)
	}
	slices.SortFunc(all, func(a, b Seen) int {
		dead := func(s Seen) int {
			if s.Alive {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.Name, b.Name), dead(a)-dead(b), cmp.Compare(b.Since, a.Since), cmp.Compare(a.ID, b.ID))
	})
	return all
}

// lost returns the addresses of the dead that nobody has taken the place of, in order.
func (v *view) lost(now dunlin.Time) []string {
	v.Lock()
	defer v.Unlock()
	v.forgetLocked(now)
	taken := make(map[string]bool)
	for _, id := range v.living {
		taken[v.by[id].Addr] = true
	}
	var addrs []string
	for _, s := range v.by {
		if _, replaced := v.living[s.Name]; !s.Alive && !replaced && !taken[s.Addr] {
			taken[s.Addr] = true
			addrs = append(addrs, s.Addr)
		}
	}
	slices.Sort(addrs)
	return addrs
}

// alive returns how many nodes live, this one included.
func (v *view) alive() int {
	v.Lock()
	defer v.Unlock()
	return len(v.living)
}

func (v *view) dead() int {
	v.Lock()
	defer v.Unlock()
	return len(v.by) - len(v.living)
}

// cluster returns the id of the cluster that the living belong to; "" if none of them has joined one.
func (v *view) cluster() string {
	v.Lock()
	defer v.Unlock()
	for _, id := range v.living {
		if c := v.by[id].Cluster; c != "" {
			return c
		}
	}
	return ""
}

// find returns the node that lives under the name, and the one that lives with the id.
func (v *view) find(name string, id dunlin.NodeID) (byName, byID *Seen) {
	v.Lock()
	defer v.Unlock()
	if other, ok := v.living[name]; ok {
		byName = v.by[other]
	}
	if s := v.by[id]; s != nil && s.Alive {
		byID = s
	}
	return byName, byID
}
