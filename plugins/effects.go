package plugins

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins/abi"
)

// What a plugin says seldom: commands, publications, inputs that it refuses alone.

// grants are the capabilities that a module's manifest asks for.
type grants struct{ command, publish bool }

func (d *decoder) granted(ok bool, what, capability string) bool {
	if !ok {
		d.fail("%s, but the plugin's manifest doesn't ask for it: add %q to its capabilities", what, capability)
	}
	return ok
}

func (d *decoder) command(rec []byte) error {
	x, err := abi.ReadCommand(rec)
	if err != nil {
		return err
	}
	if !d.counted() || !d.granted(d.w.grants.command, "it commands the device", abi.CapabilityCommand) {
		return nil
	}
	c := dunlin.Command{Name: d.w.intern(x.Name), Format: dunlin.ContentFormat(x.Format), Deadline: dunlin.Time(x.Deadline)}
	switch err := dunlin.ValidateCommandName(c.Name); {
	case err != nil:
		d.fail("a command: %v", err)
	case c.Deadline < 0 || c.Deadline > timeMax:
		d.fail("command %s has deadline %d µs, not within 1970 to 9999", c.Name, x.Deadline)
	case d.bounded("command "+c.Name, x.Payload, dunlin.CommandBytesMax):
		c.Payload = payload(x.Payload)
	}
	if d.why != "" {
		return nil
	}
	if c.Deadline == 0 {
		c.Deadline = min(d.now.Add(dunlin.CommandDeadlineDefault), timeMax)
	}
	c.Deadline = max(c.Deadline, d.now+timerDelayMin)
	d.w.commands = append(d.w.commands, c)
	return nil
}

func (d *decoder) publish(rec []byte) error {
	x, err := abi.ReadPublish(rec)
	if err != nil {
		return err
	}
	if !d.counted() || !d.granted(d.w.grants.publish, "it publishes", abi.CapabilityPublish) {
		return nil
	}
	p := dunlin.Publication{Topic: d.w.intern(x.Topic), Format: dunlin.ContentFormat(x.Format)}
	if err := dunlin.ValidateTopic(p.Topic); err != nil {
		d.fail("a publication: %v", err)
	} else if d.bounded("publication "+p.Topic, x.Payload, dunlin.PublicationBytesMax) {
		p.Payload = payload(x.Payload)
		d.w.publish = append(d.w.publish, p)
	}
	return nil
}

func (d *decoder) bounded(what string, b []byte, most int) bool {
	if len(b) > most {
		d.fail("%s has a payload of %d bytes, at most %d are allowed", what, len(b), most)
	}
	return d.why == ""
}

// payload copies b; none is nil, as in an entry.
func payload(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return bytes.Clone(b)
}

func (d *decoder) refuse(rec []byte) error {
	input, why, err := abi.ReadInputError(rec)
	if err != nil {
		return err
	}
	if !d.counted() {
		return nil
	}
	if int64(input) >= int64(len(d.work.Inputs)) {
		d.fail("it refuses input %d of %d", input, len(d.work.Inputs))
		return nil
	}
	d.w.refused = append(d.w.refused, dunlin.InputError{Input: int(input),
		Reason: fmt.Sprintf("plugin: %s", cleanText(why, d.w.limits.TextBytes))})
	return nil
}

// seldom copies what there is.
func seldom[T any](list []T) []T {
	if len(list) == 0 {
		return nil
	}
	return slices.Clone(list)
}

// refusals copies inputs that were refused, in their order; of several reasons the first counts.
func refusals(list []dunlin.InputError) []dunlin.InputError {
	list = seldom(list)
	slices.SortStableFunc(list, func(a, b dunlin.InputError) int { return a.Input - b.Input })
	return slices.CompactFunc(list, func(a, b dunlin.InputError) bool { return a.Input == b.Input })
}
