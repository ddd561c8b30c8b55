package device

import (
	"strings"

	"github.com/dunlin-iot/dunlin"
)

// Again begins a turn of inputs that were accepted in another life, as a recording has them: the machine is committing then,
// as after Propose, and Stage, Apply and Abort go on from there. The inputs' dedupe and bounds are not looked at again, and
// nobody waits for answers.
func (m *Machine) Again(c *dunlin.Change, inputs []dunlin.Input) {
	m.mustBe(Idle)
	for i := range inputs {
		switch in := &inputs[i]; {
		case in.Kind == dunlin.InputTimer:
			m.fired = append(m.fired, dunlin.DueTimer{DeviceKey: m.state.DeviceKey, Name: in.Timer, Due: in.Received})
		case in.Kind == dunlin.InputResult && in.Flags&dunlin.FlagTimedOut != 0:
			m.fired = append(m.fired, dunlin.DueTimer{DeviceKey: m.state.DeviceKey, Name: ownTimer + in.Timer, Due: in.Received})
			m.rare().results++
		case in.Kind == dunlin.InputResult:
			m.rare().results++
		}
	}
	m.phase = Gathering
	m.Propose(c, inputs)
}

// TimerInput is the input that an armed timer becomes when it fires: a command's deadline is its result.
func TimerInput(t dunlin.TimerSet) dunlin.Input {
	if id, ok := strings.CutPrefix(t.Name, ownTimer); ok {
		return dunlin.Input{Kind: dunlin.InputResult, Flags: dunlin.FlagTimedOut, Received: t.Due, Timer: id}
	}
	return dunlin.Input{Kind: dunlin.InputTimer, Received: t.Due, Timer: t.Name}
}
