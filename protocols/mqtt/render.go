package mqtt

import (
	"encoding/json"
	"math"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/payload"
)

func formatOf(mediaType string) (dunlin.ContentFormat, bool) { return payload.FormatOf(mediaType) }

// news is one message that an entry may cause: readings of a device, or a transition of one of its alerts.
type news struct {
	device  dunlin.DeviceID
	records []dunlin.Record
	alert   *dunlin.Alert
}

// eachNews calls yield for the messages of an entry, always in the same order, so that a follower can go on inside of
// one: for each change its readings as they came, what the plugins derived from them, and its alerts.
func eachNews(e *dunlin.Entry, tenant dunlin.Tenant, yield func(n news) bool) {
	for i := range e.Changes {
		ch := &e.Changes[i]
		if ch.Tenant != tenant {
			continue
		}
		for j := range ch.Inputs {
			if in := &ch.Inputs[j]; in.Kind == dunlin.InputTelemetry && len(in.Records) > 0 {
				if !yield(news{device: ch.Device, records: in.Records}) {
					return
				}
			}
		}
		for j := range ch.Stages {
			if recs := ch.Stages[j].Records; len(recs) > 0 {
				if !yield(news{device: ch.Device, records: recs}) {
					return
				}
			}
		}
		for j := range ch.Alerts {
			if !yield(news{device: ch.Device, alert: &ch.Alerts[j]}) {
				return
			}
		}
	}
}

// Content types of what subscribers get.
const (
	mediaSenML = "application/senml+json"
	mediaAlert = "application/json"
)

// appendPayload renders n: canonical SenML JSON, or the alert as JSON.
func appendPayload(dst []byte, n *news) ([]byte, error) {
	if n.alert == nil {
		return payload.AppendSenML(dst, n.device, n.records), nil
	}
	a := *n.alert
	if a.Value != nil && (math.IsNaN(*a.Value) || math.IsInf(*a.Value, 0)) {
		a.Value = nil // JSON can't say it
	}
	b, err := json.Marshal(&a)
	return append(dst, b...), err
}

func appendTopic(dst []byte, n *news) []byte {
	dst = append(append(dst, "d/"...), n.device...)
	if n.alert != nil {
		return append(dst, "/a"...)
	}
	return append(dst, "/t"...)
}
