package actors

import (
	"encoding/json"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/device"
	"github.com/dunlin-iot/dunlin/entry"
)

// lifecycle is what a change of a device's registration is to its plugins: an input of a turn of its own, once the change is
// committed. A shard that moves in between takes it along no further: the plugins are told at most once.
func lifecycle(puts []dunlin.Put, key *dunlin.DeviceKey, was *dunlin.DeviceState, now dunlin.Time) *dunlin.Input {
	if key == nil {
		return nil
	}
	for i := range puts {
		p := &puts[i]
		if p.Table != dunlin.TableDevices || p.Key != key.String() || p.Value == nil {
			continue
		}
		var row dunlin.Device
		if json.Unmarshal(p.Value, &row) != nil {
			return nil // the registry has made it
		}
		e := dunlin.LifecycleEvent{Event: "registered", Domain: row.Domain, Labels: row.Labels}
		if was != nil {
			if e.Event = "changed"; was.Domain != row.Domain {
				e.Was = was.Domain
			}
		}
		payload, err := json.Marshal(e)
		if err != nil {
			return nil
		}
		return &dunlin.Input{Kind: dunlin.InputLifecycle, Format: dunlin.FormatJSON, Received: now, Payload: payload}
	}
	return nil
}

// occur has the device's next turn begin with something that happened to it, if anybody is to be told.
func (s *shard) occur(key dunlin.DeviceKey, in *dunlin.Input) {
	if s.term == 0 || s.dir.cfg.EntryVersion() < entry.VersionEffects {
		return
	}
	c, err := s.cell(key)
	if err != nil || !c.Registered() {
		return
	}
	if r := s.rules(key.Tenant, c.Domain()); r == nil || len(r.Stages) == 0 {
		return
	}
	if c.Occur(*in) {
		s.happened = append(s.happened, c)
		s.enlist(1)
	}
}

// gatherHappened adds the devices to the turn that something happened to.
func (s *shard) gatherHappened(t *turn) {
	later := s.happened[:0]
	for _, c := range s.happened {
		if c.place < 0 || c.Phase() != device.Gathering {
			continue // the shard was given up meanwhile
		}
		rules, to := s.rules(c.Key().Tenant, c.Domain()), t
		if s.slow(rules) {
			l := s.lane(rules)
			if to = l.turn; l.flying {
				later = append(later, c)
				continue
			}
		}
		to.add(c, rules)
	}
	clear(s.happened[len(later):])
	s.happened = later
}
