package entry

import "github.com/dunlin-iot/dunlin"

// VersionEffects is the first version of entries that can say what plugins send out (commands, publications), which inputs
// they refuse alone, and what made their states; and the first in which inputs of the kinds InputResult and InputLifecycle,
// and the deletion of dead letters, mean what they do.
const VersionEffects = 2

const versionEffects = VersionEffects

// Needs returns the oldest version that says all of e. Whoever proposes an entry in an older one (see AppendAs) has to see to
// it before that nothing is in e that would be missed: all of it but Made would.
func Needs(e *dunlin.Entry) uint32 {
	for i := range e.Changes {
		if changeNeeds(&e.Changes[i]) {
			return VersionEffects
		}
	}
	for i := range e.Puts {
		if e.Puts[i].Table == dunlin.TableDeadLetters {
			return VersionEffects
		}
	}
	return BaseVersion
}

func changeNeeds(c *dunlin.Change) bool {
	if len(c.Commands) > 0 || len(c.Publish) > 0 {
		return true
	}
	for i := range c.Inputs {
		if k := c.Inputs[i].Kind; k == dunlin.InputResult || k == dunlin.InputLifecycle {
			return true
		}
	}
	for i := range c.Stages {
		if st := &c.Stages[i]; len(st.Refused) > 0 || st.Made != (dunlin.Made{}) {
			return true
		}
	}
	return false
}

// stateNeeds is Needs for a state. Its bytes depend on nothing else: builds of different versions that apply the same entries
// keep the same bytes, and so do folds of the same parts in any grouping.
func stateNeeds(s *dunlin.DeviceState) uint8 {
	if len(s.Commands) > 0 {
		return stateEffects
	}
	for i := range s.Plugins {
		if s.Plugins[i].Made != (dunlin.Made{}) {
			return stateEffects
		}
	}
	return stateBase
}
