package device

import "github.com/dunlin-iot/dunlin"

// Again begins a turn of inputs that were accepted in another life, as a recording has them: the machine is committing then,
// as after Propose, and Stage, Apply and Abort go on from there. The inputs' dedupe and bounds are not looked at again, and
// nobody waits for answers.
func (m *Machine) Again(c *dunlin.Change, inputs []dunlin.Input) {
	m.mustBe(Idle)
	for i := range inputs {
		if in := &inputs[i]; in.Kind == dunlin.InputTimer {
			m.fired = append(m.fired, dunlin.DueTimer{DeviceKey: m.state.DeviceKey, Name: in.Timer, Due: in.Received})
		}
	}
	m.phase = Gathering
	m.Propose(c, inputs)
}
