package httpapi

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

// event is one thing that an entry tells: an input with readings, what a plugin derived, an alert's transition, a command or
// its result, a publication, or a device that registered itself.
type event struct {
	kind    eventTypes
	change  *dunlin.Change
	input   int                 // of a reading, or of a command's result
	stage   *dunlin.StageResult // of a derived reading
	alert   *dunlin.Alert
	command *dunlin.Command // nil: a result
	publish *dunlin.Publication
	device  dunlin.Device // that registered itself, or that an operator registered, changed or removed
	deleted bool
}

// eachEvent calls f for an entry's events in an order that never changes: a position between them is part of event ids.
func eachEvent(e *dunlin.Entry, f func(n int, ev *event)) {
	n := 0
	var ev event
	emit := func(next event) {
		ev = next
		f(n, &ev)
		n++
	}
	for i := range e.Puts {
		if p := &e.Puts[i]; p.Table == dunlin.TableDevices {
			next := event{kind: eventDevice, deleted: p.Value == nil}
			if p.Value != nil && json.Unmarshal(p.Value, &next.device) != nil {
				continue
			}
			tenant, id, _ := strings.Cut(p.Key, "/")
			next.device.Tenant, next.device.ID = dunlin.Tenant(tenant), dunlin.DeviceID(id)
			emit(next)
		}
	}
	for i := range e.Changes {
		c := &e.Changes[i]
		if c.Created && !hasRow(e, c.DeviceKey) { // else the registry's row has told it, with its revision
			emit(event{kind: eventDevice, change: c,
				device: dunlin.Device{Tenant: c.Tenant, ID: c.Device, Domain: c.Domain, CreatedAt: e.At, UpdatedAt: e.At}})
		}
		for k := range c.Inputs {
			if c.Inputs[k].Kind == dunlin.InputTelemetry || c.Inputs[k].Kind == dunlin.InputRaw {
				emit(event{kind: eventReading, change: c, input: k})
			}
		}
		for k := range c.Stages {
			if st := &c.Stages[k]; len(st.Records) > 0 {
				emit(event{kind: eventReading, change: c, stage: st})
			}
		}
		for k := range c.Alerts {
			emit(event{kind: eventAlert, change: c, alert: &c.Alerts[k]})
		}
		for k := range c.Inputs {
			if c.Inputs[k].Kind == dunlin.InputResult {
				emit(event{kind: eventCommand, change: c, input: k})
			}
		}
		for k := range c.Commands {
			emit(event{kind: eventCommand, change: c, command: &c.Commands[k]})
		}
		for k := range c.Publish {
			emit(event{kind: eventPublication, change: c, publish: &c.Publish[k]})
		}
	}
}

// hasRow reports whether the entry writes the device's row of the registry.
func hasRow(e *dunlin.Entry, k dunlin.DeviceKey) bool {
	key := k.String()
	return slices.ContainsFunc(e.Puts, func(p dunlin.Put) bool { return p.Table == dunlin.TableDevices && p.Key == key })
}

// wants reports whether the client asked for the event. The tenant is not the client's to choose.
func (f *eventFilter) wants(ev *event) bool {
	key, domain := dunlin.DeviceKey{Tenant: ev.device.Tenant, Device: ev.device.ID}, ev.device.Domain
	if ev.change != nil {
		key, domain = ev.change.DeviceKey, ev.change.Domain
	}
	return f.types&ev.kind != 0 && key.Tenant == f.tenant && (f.domain == "" || f.domain == domain) && (f.device == nil || *f.device == key)
}

// append writes the event's lines, without the id and the empty line that ends it.
func (ev *event) append(dst []byte) []byte {
	switch ev.kind {
	case eventAlert:
		dst = append(dst, "event: alert\ndata: "...)
		doc := marshal(alertViewOf(ev.alert))
		dst = append(dst, doc...)
	case eventDevice:
		dst = append(dst, "event: device\ndata: "...)
		doc := marshal(struct {
			*dunlin.Device
			Deleted bool `json:"deleted,omitempty"`
		}{&ev.device, ev.deleted})
		dst = append(dst, doc...)
	case eventCommand:
		dst = append(dst, "event: command\ndata: "...)
		dst = append(dst, marshal(ev.commandEvent())...)
	case eventPublication:
		dst = append(dst, "event: publication\ndata: "...)
		dst = append(dst, marshal(struct {
			Device dunlin.DeviceID `json:"device"`
			Domain dunlin.DomainID `json:"domain"`
			Seq    uint64          `json:"seq"`
			Topic  string          `json:"topic"`
			bodyView
		}{ev.change.Device, ev.change.Domain, ev.change.Version, ev.publish.Topic, bodyViewOf(ev.publish.Payload, ev.publish.Format)})...)
	default:
		dst = append(dst, "event: reading\ndata: "...)
		dst = ev.appendReading(dst)
	}
	return append(dst, '\n')
}

// commandEvent is a command that a plugin made, or its result.
func (ev *event) commandEvent() any {
	type head struct {
		Device dunlin.DeviceID `json:"device"`
		Domain dunlin.DomainID `json:"domain"`
		Seq    uint64          `json:"seq"`
		State  string          `json:"state"`
	}
	c := ev.change
	if ev.command != nil {
		return struct {
			head
			commandView
		}{head{c.Device, c.Domain, c.Version, "waiting"}, commandViewOf(ev.command)}
	}
	in := &c.Inputs[ev.input]
	state := "answered"
	if in.Flags&dunlin.FlagTimedOut != 0 {
		state = "timed_out"
	}
	return struct {
		head
		ID string      `json:"id"`
		At dunlin.Time `json:"at"`
		bodyView
	}{head{c.Device, c.Domain, c.Seq(ev.input), state}, in.Timer, in.Received, bodyViewOf(in.Payload, in.Format)}
}

func (ev *event) appendReading(dst []byte) []byte {
	c := ev.change
	dst = append(dst, `{"device":`...)
	dst = appendString(dst, string(c.Device))
	dst = append(dst, `,"domain":`...)
	dst = appendString(dst, string(c.Domain))
	dst = append(dst, `,"seq":`...)
	if st := ev.stage; st != nil {
		dst = strconv.AppendUint(dst, c.Version, 10)
		dst = append(dst, `,"derived":true,"stage":`...)
		dst = strconv.AppendUint(dst, uint64(st.Stage), 10)
		dst = append(dst, `,"records":`...)
		dst = appendRecords(dst, st.Records)
		return append(dst, '}')
	}
	in := &c.Inputs[ev.input]
	dst = strconv.AppendUint(dst, c.Seq(ev.input), 10)
	dst = append(dst, `,"received":`...)
	dst = appendTime(dst, in.Received)
	if in.Sender != "" {
		dst = append(dst, `,"sender":`...)
		dst = appendString(dst, in.Sender)
	}
	if in.Flags&dunlin.FlagSkewed != 0 {
		dst = append(dst, `,"skewed":true`...)
	}
	if in.Kind == dunlin.InputRaw {
		dst = append(dst, `,"raw_bytes":`...)
		dst = strconv.AppendInt(dst, int64(len(in.Payload)), 10)
	}
	dst = append(dst, `,"records":`...)
	dst = appendRecords(dst, in.Records)
	return append(dst, '}')
}
