package device

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

// ownTimer begins the names of timers that are no plugin's, whose names can't have it: behind it stands the id of the command
// whose deadline the timer is. When it fires it is not an InputTimer but the command's InputResult.
const ownTimer = "!"

// extra is what few turns have.
type extra struct {
	occurred []dunlin.Input
	results  int // inputs that are results
}

func (m *Machine) rare() *extra {
	if m.extra == nil {
		m.extra = new(extra)
	}
	return m.extra
}

func (m *Machine) happened() int {
	if m.extra == nil {
		return 0
	}
	return len(m.extra.occurred)
}

// Occur makes something that happened to the device, and that no sender sent (an InputLifecycle), an input of the turn, behind
// its timers and before its uplinks. It reports false if the device is committing. Only an entry of entry.VersionEffects or
// later may have such an input.
func (m *Machine) Occur(in dunlin.Input) bool {
	if m.phase == Committing {
		return false
	}
	e := m.rare()
	e.occurred = append(e.occurred, in)
	m.phase = Gathering
	return true
}

// waits reports whether a command waits for an answer that is not in the turn yet.
func (m *Machine) waits(id string) bool {
	if !m.pending(id) {
		return false
	}
	for i := range m.fired {
		if m.fired[i].Name == ownTimer+id {
			return false
		}
	}
	for u := m.turn.head; u != nil; u = u.Next {
		if u.Kind == dunlin.InputResult && u.Timer == id {
			return false
		}
	}
	return true
}

// pending reports whether the command waits for an answer as far as is committed.
func (m *Machine) pending(id string) bool {
	return slices.ContainsFunc(m.state.Commands, func(c dunlin.Command) bool { return c.ID == id })
}

// settle cancels the deadlines of the commands that the turn has results of.
func (m *Machine) settle(c *dunlin.Change) {
	for i := range c.Inputs {
		if in := &c.Inputs[i]; in.Kind == dunlin.InputResult {
			if due := m.armed(ownTimer + in.Timer); due != 0 {
				c.Timers = append(c.Timers, dunlin.TimerSet{Name: ownTimer + in.Timer, Was: due})
			}
		}
	}
}

// effects adds what the plugin sends out to the change, and returns which inputs it refuses, or what is wrong.
func (m *Machine) effects(c *dunlin.Change, from *Origin, out *dunlin.Outcome) (refused []dunlin.InputError, failure string) {
	if !from.Effects {
		return nil, errEffects
	}
	if failure = m.commands(c, out.Commands, from.Now); failure == "" {
		failure = publish(c, out.Publish)
	}
	for i := range out.Refused {
		r := out.Refused[i]
		r.Input = min(max(r.Input, 0), len(c.Inputs)-1)
		if !slices.ContainsFunc(refused, func(o dunlin.InputError) bool { return o.Input == r.Input }) { // the first word counts
			refused = append(refused, r)
		}
	}
	return refused, failure
}

// commands adds the plugin's commands, each with its deadline as a timer, and says what is wrong with them, or nothing.
func (m *Machine) commands(c *dunlin.Change, commands []dunlin.Command, now dunlin.Time) string {
	waiting := len(m.state.Commands) + len(c.Commands) + len(commands)
	for i := range c.Inputs {
		if in := &c.Inputs[i]; in.Kind == dunlin.InputResult && m.pending(in.Timer) {
			waiting--
		}
	}
	if len(commands) > 0 && waiting > dunlin.CommandsPerDeviceMax {
		return fmt.Sprintf("more than %d commands of the device would wait for an answer", dunlin.CommandsPerDeviceMax)
	}
	for _, cmd := range commands {
		if err := dunlin.ValidateCommandName(cmd.Name); err != nil {
			return err.Error()
		}
		if len(cmd.Payload) > dunlin.CommandBytesMax {
			return fmt.Sprintf("the payload of command %s has %d bytes, at most %d are allowed", cmd.Name, len(cmd.Payload), dunlin.CommandBytesMax)
		}
		cmd.ID, cmd.At = dunlin.CommandID(c.Version, len(c.Commands)), now
		if cmd.Deadline == 0 {
			cmd.Deadline = now.Add(dunlin.CommandDeadlineDefault)
		}
		cmd.Deadline = max(cmd.Deadline, now.Add(TimerMin))
		c.Commands = append(c.Commands, cmd)
		c.Timers = append(c.Timers, dunlin.TimerSet{Name: ownTimer + cmd.ID, Due: cmd.Deadline})
	}
	return ""
}

// publish adds the plugin's publications, and says what is wrong with them, or nothing.
func publish(c *dunlin.Change, pubs []dunlin.Publication) string {
	if len(c.Publish)+len(pubs) > dunlin.PublicationsPerTurnMax {
		return fmt.Sprintf("more than %d publications of one device's turn", dunlin.PublicationsPerTurnMax)
	}
	for i := range pubs {
		p := &pubs[i]
		if err := dunlin.ValidateTopic(p.Topic); err != nil {
			return err.Error()
		}
		if len(p.Payload) > dunlin.PublicationBytesMax {
			return fmt.Sprintf("publication to %s has %d bytes, at most %d are allowed", p.Topic, len(p.Payload), dunlin.PublicationBytesMax)
		}
	}
	c.Publish = append(c.Publish, pubs...)
	return ""
}

func (m *Machine) addCommand(c *dunlin.Command) {
	own := *c
	own.ID, own.Name, own.Payload = strings.Clone(c.ID), strings.Clone(c.Name), bytes.Clone(c.Payload)
	m.state.Commands = append(m.state.Commands, own)
}

func (m *Machine) dropCommand(id string) {
	s := &m.state
	s.Commands = slices.DeleteFunc(s.Commands, func(c dunlin.Command) bool { return c.ID == id })
	if len(s.Commands) == 0 {
		s.Commands = nil // few devices have any, and none for long
	}
}
