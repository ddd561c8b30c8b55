package mqtt

import (
	"bytes"
	"encoding/json"
	"math"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/payload"
)

func formatOf(mediaType string) (dunlin.ContentFormat, bool) { return payload.FormatOf(mediaType) }

// newsKind says what a message is about. The numbers are part of the format of sessions.
type newsKind uint8

// The kinds of news.
const (
	newsReadings    newsKind = iota
	newsAlert                // a transition
	newsCommand              // to the device
	newsPublication          // to applications
	newsKinds
)

// news is one message that an entry may cause.
type news struct {
	kind    newsKind
	device  dunlin.DeviceID
	records []dunlin.Record
	alert   *dunlin.Alert
	command *dunlin.Command
	publish *dunlin.Publication
}

// eachNews calls yield for the messages of an entry, always in the same order, so that a follower can go on inside of
// one: for each change its readings as they came, what the plugins derived from them, its alerts, commands and publications.
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
			if !yield(news{kind: newsAlert, device: ch.Device, alert: &ch.Alerts[j]}) {
				return
			}
		}
		for j := range ch.Commands {
			if !yield(news{kind: newsCommand, device: ch.Device, command: &ch.Commands[j]}) {
				return
			}
		}
		for j := range ch.Publish {
			if !yield(news{kind: newsPublication, device: ch.Device, publish: &ch.Publish[j]}) {
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

// appendPayload renders n: canonical SenML JSON, the alert as JSON, or what the plugin said as it is.
func appendPayload(dst []byte, n *news) ([]byte, error) {
	switch n.kind {
	case newsReadings:
		return payload.AppendSenML(dst, n.device, n.records), nil
	case newsCommand:
		return append(dst, n.command.Payload...), nil
	case newsPublication:
		return append(dst, n.publish.Payload...), nil
	}
	a := *n.alert
	if a.Value != nil && (math.IsNaN(*a.Value) || math.IsInf(*a.Value, 0)) {
		a.Value = nil // JSON can't say it
	}
	b, err := json.Marshal(&a)
	return append(dst, b...), err
}

// appendTopic writes the topic of n: d/{device}/t, d/{device}/a, d/{device}/c/{command}/req/{name}, p/{device}/{topic}.
func appendTopic(dst []byte, n *news) []byte {
	if n.kind == newsPublication {
		dst = append(append(dst, "p/"...), n.device...)
		return append(append(dst, '/'), n.publish.Topic...)
	}
	dst = append(append(dst, "d/"...), n.device...)
	switch n.kind {
	case newsAlert:
		return append(dst, "/a"...)
	case newsCommand:
		dst = append(append(append(dst, "/c/"...), n.command.ID...), "/req/"...)
		return append(dst, n.command.Name...)
	}
	return append(dst, "/t"...)
}

// media is the content type of n; "" if a plugin's payload has none of ours, or is not there.
func (n *news) media() string {
	switch {
	case n.kind == newsReadings:
		return mediaSenML
	case n.kind == newsAlert:
		return mediaAlert
	case n.kind == newsCommand && len(n.command.Payload) > 0:
		return payload.MediaType(n.command.Format)
	case n.kind == newsPublication && len(n.publish.Payload) > 0:
		return payload.MediaType(n.publish.Format)
	}
	return ""
}

// answerTopic is where a command's answer goes, and the command's id, of the topic of its request.
func answerTopic(request []byte) (head, id []byte) {
	i := bytes.LastIndex(request, []byte("/req/"))
	if i < 0 {
		return nil, nil
	}
	return request[:i], request[bytes.LastIndexByte(request[:i], '/')+1 : i]
}

const answerLevel = "/res"
