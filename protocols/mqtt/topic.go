package mqtt

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

// address is what the topic of a PUBLISH names: d/{device}/t, optionally with the payload's format behind it, or
// d/{device}/c/{command}/res; an authenticated device may leave d/{device}/ out.
type address struct {
	device  dunlin.DeviceID
	command string // that is answered; "": telemetry
	format  dunlin.ContentFormat
	named   bool // format is given; otherwise see sniff
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
	if answer, ok := strings.CutPrefix(rest, "c/"); ok {
		if a.command, ok = strings.CutSuffix(answer, "/res"); !ok {
			return a, topicError(topic)
		}
		if _, _, err := dunlin.ParseCommandID(a.command); err != nil {
			return a, topicError(topic)
		}
	} else if rest != "t" {
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
	return &fault{codeTopicName, fmt.Sprintf("topic %q: publish to d/{device}/t or d/{device}/t/{json|cbor|senml|senml-cbor|text|octets}; a device answers a command at d/{device}/c/{command}/res",
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

// filter is a topic filter, compiled against the only topics that there are to subscribe to: see appendTopic.
type filter struct {
	text   string
	device dunlin.DeviceID // "": any
	kinds  [newsKinds]bool // what it can match at all
	levels []string        // to match what has more levels than three; nil: they all match
}

// shapes are the topics of each kind of news by levels: "" is any, a last "#" any one or more.
var shapes = [newsKinds][]string{
	newsReadings: {"d", "", "t"}, newsAlert: {"d", "", "a"}, newsCommand: {"d", "", "c", "", "req", ""}, newsPublication: {"p", "", "#"},
}

const filterHelp = "subscribe to d/{device}/t, d/{device}/a, d/{device}/c/+/req/+ or p/{device}/#"

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
	f := filter{text: text}
	some := false
	for kind, shape := range shapes {
		f.kinds[kind] = canMatch(levels, shape) && plausible(newsKind(kind), levels)
		some = some || f.kinds[kind]
	}
	if !some {
		return bad(filterHelp)
	}
	if len(levels) > 1 && levels[1] != "+" && levels[1] != "#" {
		f.device = dunlin.DeviceID(levels[1])
		if f.device.Validate() != nil {
			return bad("that is no device id")
		}
	}
	if last := len(levels) - 1; levels[last] != "#" || last > 2 {
		f.levels = levels
	}
	return f, nil
}

// canMatch reports whether a filter of these levels matches any topic of the shape.
func canMatch(levels, shape []string) bool {
	for i := 0; ; i++ {
		switch open := i < len(shape) && shape[i] == "#"; {
		case i < len(levels) && levels[i] == "#":
			return true
		case open:
			return i < len(levels) && !slices.Contains(levels[i:], "")
		case i == len(levels) || i == len(shape):
			return i == len(levels) && i == len(shape)
		case levels[i] == "" || levels[i] != "+" && shape[i] != "" && levels[i] != shape[i]:
			return false
		}
	}
}

// plausible reports whether the levels that a filter names can be there: those of a topic that a plugin names have rules, too.
func plausible(kind newsKind, levels []string) bool {
	concrete := func(i int) bool { return i < len(levels) && levels[i] != "+" && levels[i] != "#" }
	switch kind {
	case newsCommand:
		if concrete(3) {
			if _, _, err := dunlin.ParseCommandID(levels[3]); err != nil {
				return false
			}
		}
		return !concrete(5) || dunlin.ValidateCommandName(levels[5]) == nil
	case newsPublication:
		if len(levels) < 3 {
			return true
		}
		topic := strings.NewReplacer("+", "x", "#", "x").Replace(strings.Join(levels[2:], "/"))
		return dunlin.ValidateTopic(strings.TrimSuffix(topic, "/x")) == nil // # may stand for nothing
	}
	return true
}

// matchTopic reports whether a filter of these levels matches the topic.
func matchTopic(levels []string, topic string) bool {
	rest := strings.Split(topic, "/")
	for i, l := range levels {
		if l == "#" {
			return true // the parent level included (§4.7.1.2)
		}
		if i == len(rest) || l != "+" && l != rest[i] {
			return false
		}
	}
	return len(levels) == len(rest)
}

func (f *filter) matches(n *news) bool {
	if f.device != "" && f.device != n.device || !f.kinds[n.kind] {
		return false
	}
	if n.kind == newsReadings || n.kind == newsAlert || f.levels == nil {
		return true
	}
	return matchTopic(f.levels, string(appendTopic(nil, n)))
}
