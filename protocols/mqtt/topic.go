package mqtt

import (
	"fmt"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

// address is what the topic of a PUBLISH names: d/{device}/t, optionally with the payload's format behind it; an
// authenticated device may leave d/{device}/ out.
type address struct {
	device dunlin.DeviceID
	format dunlin.ContentFormat
	named  bool // format is given; otherwise see sniff
}

// topicFormat maps the last level of a topic to a format, for clients that have no Content Type property.
func topicFormat(level string) (dunlin.ContentFormat, bool) {
	switch level {
	case "json":
		return dunlin.FormatJSON, true
	case "cbor":
		return dunlin.FormatCBOR, true
	case "senml":
		return dunlin.FormatSenMLJSON, true
	case "senml-cbor":
		return dunlin.FormatSenMLCBOR, true
	case "text":
		return dunlin.FormatText, true
	case "octets":
		return dunlin.FormatOctets, true
	}
	return 0, false
}

// parseTopic reads a topic name as p may use it; whether p may write to the device is not asked here.
func parseTopic(topic string, p *dunlin.Principal) (address, error) {
	var a address
	rest := topic
	if after, ok := strings.CutPrefix(topic, "d/"); ok {
		id, tail, ok := strings.Cut(after, "/")
		if !ok {
			return a, topicError(topic)
		}
		a.device, rest = dunlin.DeviceID(id), tail
	} else if p.Kind == dunlin.PrincipalDevice {
		a.device = dunlin.DeviceID(p.ID)
	} else {
		return a, topicError(topic)
	}
	if rest != "t" {
		level, ok := strings.CutPrefix(rest, "t/")
		if !ok {
			return a, topicError(topic)
		}
		if a.format, a.named = topicFormat(level); !a.named {
			return a, topicError(topic)
		}
	}
	if err := a.device.Validate(); err != nil {
		return a, &fault{codeTopicName, err.Error()}
	}
	return a, nil
}

func topicError(topic string) error {
	return &fault{codeTopicName, fmt.Sprintf("topic %q: publish to d/{device}/t or d/{device}/t/{json|cbor|senml|senml-cbor|text|octets}",
		clip(topic, 80))}
}

// sniff guesses the format of a payload that nobody named: a JSON array is SenML, a JSON object plain JSON, a CBOR array
// SenML, a CBOR map plain CBOR, and what begins like a number is text. Octets must be named.
func sniff(b []byte) (dunlin.ContentFormat, bool) {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t' || b[0] == '\n' || b[0] == '\r') {
		b = b[1:]
	}
	if len(b) == 0 {
		return 0, false
	}
	switch c := b[0]; {
	case c == '[':
		return dunlin.FormatSenMLJSON, true
	case c == '{':
		return dunlin.FormatJSON, true
	case c >= 0x80 && c <= 0x9F:
		return dunlin.FormatSenMLCBOR, true
	case c >= 0xA0 && c <= 0xBF:
		return dunlin.FormatCBOR, true
	case c >= '0' && c <= '9', c == '-', c == '+', c == '.':
		return dunlin.FormatText, true
	}
	return 0, false
}

// filter is a topic filter, compiled against the only topics that there are to subscribe to: d/{device}/t and
// d/{device}/a.
type filter struct {
	text      string
	device    dunlin.DeviceID // "": any
	telemetry bool
	alerts    bool
}

// parseFilter compiles a topic filter. A filter that can match nothing is refused rather than granted and silent.
func parseFilter(text string) (filter, *fault) {
	bad := func(why string) (filter, *fault) {
		return filter{}, &fault{codeTopicFilter, fmt.Sprintf("filter %q: %s", clip(text, 80), why)}
	}
	if strings.HasPrefix(text, "$share/") {
		return filter{}, &fault{codeNoSharedSubs, "shared subscriptions are not supported"}
	}
	levels := strings.Split(text, "/")
	for i, l := range levels {
		if strings.ContainsAny(l, "+#") && l != "+" && (l != "#" || i != len(levels)-1) {
			return bad("a wildcard must be a whole level, # the last")
		}
	}
	// at returns the filter's level i, "#" for every level behind a trailing one.
	at := func(i int) string {
		if levels[len(levels)-1] == "#" && i >= len(levels)-1 {
			return "#"
		}
		if i >= len(levels) {
			return ""
		}
		return levels[i]
	}
	if len(levels) > 4 || len(levels) == 4 && levels[3] != "#" || levels[0] == "" {
		return bad("subscribe to d/{device}/t or d/{device}/a")
	}
	f := filter{text: text}
	last := at(2)
	f.telemetry = last == "t" || last == "+" || last == "#"
	f.alerts = last == "a" || last == "+" || last == "#"
	if d := at(0); d != "d" && d != "+" && d != "#" || !f.telemetry && !f.alerts {
		return bad("subscribe to d/{device}/t or d/{device}/a")
	}
	if d := at(1); d != "+" && d != "#" {
		f.device = dunlin.DeviceID(d)
		if f.device.Validate() != nil {
			return bad("that is no device id")
		}
	}
	return f, nil
}

func (f *filter) matches(dev dunlin.DeviceID, alert bool) bool {
	return (f.device == "" || f.device == dev) && (alert && f.alerts || !alert && f.telemetry)
}
