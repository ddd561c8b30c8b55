package vectors

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins/abi"
)

// want takes a line of what comes from the guest: it goes into the frame and into the outcome that the host makes of it.
func (p *parser) want(word string, a *args) error {
	c := p.call
	switch word {
	case "error-result":
		c.Error = true
		return a.end()
	case "log":
		level, text := a.int(), a.word()
		c.Out = abi.AppendText(c.Out, abi.KindLog, uint16(level), text)
		if p.group != nil && level > int64(abi.LogDebug) {
			p.group.Outcome.Logs = append(p.group.Outcome.Logs, logged(uint16(level), text))
		}
		return a.end()
	case "group":
		return p.wantGroup(a)
	}
	if p.group == nil {
		return fmt.Errorf("before any group")
	}
	if err := p.wantEffect(word, a); err != nil {
		return err
	}
	return a.end()
}

func (p *parser) wantGroup(a *args) error {
	switch i := int(a.int()); {
	case i < len(p.call.Works):
		p.group = p.call.Works[i]
		p.call.Out = abi.AppendGroup(p.call.Out, uint32(i))
	case i < p.devices:
		p.group = &dunlin.Work{} // by hand
		p.call.Out = abi.AppendGroup(p.call.Out, uint32(i))
	default:
		return fmt.Errorf("there are %d devices", p.devices)
	}
	return a.end()
}

// wantEffect takes a line that is about the device at hand.
func (p *parser) wantEffect(word string, a *args) error {
	c, o := p.call, &p.group.Outcome
	switch word {
	case "raise", "update", "clear":
		p.wantAlert(word, a)
	case "reading":
		r := dunlin.Record{Metric: a.word(), Unit: a.dash(), Time: a.time()}
		a.value(&r)
		c.Out = abi.AppendDerived(c.Out, uint8(r.Kind), int64(r.Time), r.Num, r.Metric, r.Unit, r.Str)
		o.Records = append(o.Records, r)
	case "set":
		t := dunlin.TimerSet{Name: a.word()}
		if !a.is("off") {
			t.Due = a.time()
		}
		c.Out = abi.AppendSet(c.Out, int64(t.Due), t.Name)
		o.Timers = append(o.Timers, t)
	case "state":
		o.State = append([]byte{}, a.bytes()...)
		c.Out = abi.AppendText(c.Out, abi.KindState, 0, o.State)
		if bytes.Equal(o.State, p.group.State) {
			o.State = nil // as before
		}
	case "error":
		why := a.word()
		*o = dunlin.Outcome{Failure: "plugin: " + why}
		c.Out = abi.AppendText(c.Out, abi.KindError, 0, why)
	case "refuse":
		x := dunlin.InputError{Input: int(a.int()), Reason: a.word()}
		c.Out = abi.AppendInputError(c.Out, uint32(x.Input), x.Reason)
		o.Refused = append(o.Refused, x)
	case "command":
		x := dunlin.Command{Name: a.word(), Format: dunlin.ContentFormat(a.int())}
		if !a.is("day") {
			x.Deadline = a.time()
		}
		x.Payload = a.bytes()
		c.Out = abi.AppendCommand(c.Out, int64(x.Deadline), uint16(x.Format), x.Name, x.Payload)
		o.Commands = append(o.Commands, x)
	case "publish":
		x := dunlin.Publication{Topic: a.word(), Format: dunlin.ContentFormat(a.int()), Payload: a.bytes()}
		c.Out = abi.AppendPublish(c.Out, uint16(x.Format), x.Topic, x.Payload)
		o.Publish = append(o.Publish, x)
	case "unknown":
		c.Out = abi.AppendText(c.Out, abi.Kind(a.int()), uint16(a.int()), a.bytes())
	default:
		return fmt.Errorf("unknown word")
	}
	return nil
}

// wantAlert takes "raise|update|clear INPUT RULE KEY SEVERITY VALUE TEXT".
func (p *parser) wantAlert(word string, a *args) {
	s := dunlin.AlertSignal{Input: int(a.int()), Rule: a.word(), Key: a.dash(), Raise: word == "raise", Update: word == "update"}
	if severity := a.dash(); severity != "" {
		a.check(s.Severity.UnmarshalText([]byte(severity)))
	}
	value := math.NaN()
	if v := a.dash(); v != "" {
		f, err := strconv.ParseFloat(v, 64)
		a.check(err)
		value, s.Value = f, &f
	}
	s.Text = a.dash()
	flags := uint16(0)
	switch word {
	case "raise":
		flags = abi.FlagRaise
	case "update":
		flags = abi.FlagUpdate
	}
	p.call.Out = abi.AppendAlert(p.call.Out, flags, uint32(s.Input), uint8(s.Severity), value, s.Rule, s.Key, s.Text)
	p.group.Outcome.Signals = append(p.group.Outcome.Signals, s)
}

// logged is what the host makes of a line.
func logged(level uint16, text string) string {
	switch level {
	case abi.LogWarn:
		return "warning: " + text
	case abi.LogError:
		return "error: " + text
	}
	return text
}

// args are the words of a line. The first error stays.
type args struct {
	rest []string
	err  error
}

// split cuts a line into words; one between quotes may have spaces, and keeps its first quote as a mark.
func split(line string) (a args, err error) {
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimSpace(line) {
		if line[0] != '"' {
			word, rest, _ := strings.Cut(line, " ")
			a.rest, line = append(a.rest, word), rest
			continue
		}
		q, err := strconv.QuotedPrefix(line)
		if err != nil {
			return a, err
		}
		text, err := strconv.Unquote(q)
		if err != nil {
			return a, err
		}
		a.rest, line = append(a.rest, `"`+text), line[len(q):]
	}
	return a, nil
}

func (a *args) check(err error) {
	if a.err == nil {
		a.err = err
	}
}

func (a *args) end() error {
	if a.err == nil && len(a.rest) > 0 {
		return fmt.Errorf("too much: %s", a.rest[0])
	}
	return a.err
}

func (a *args) next() string {
	if len(a.rest) == 0 {
		a.check(fmt.Errorf("too few words"))
		return "0"
	}
	w := a.rest[0]
	a.rest = a.rest[1:]
	return w
}

func (a *args) is(word string) bool {
	if len(a.rest) == 0 || a.rest[0] != word {
		return false
	}
	a.rest = a.rest[1:]
	return true
}

func (a *args) word() string { return strings.TrimPrefix(a.next(), `"`) }

// dash is a word, or "-" for none.
func (a *args) dash() string {
	if a.is("-") {
		return ""
	}
	return a.word()
}

func (a *args) int() int64 {
	v, err := strconv.ParseInt(a.next(), 0, 64)
	a.check(err)
	return v
}

// time is "+SECONDS" after Base, to the microsecond, or a number of microseconds.
func (a *args) time() dunlin.Time { return a.moment(a.next()) }

func (a *args) moment(w string) dunlin.Time {
	if !strings.HasPrefix(w, "+") {
		v, err := strconv.ParseInt(w, 10, 64)
		a.check(err)
		return dunlin.Time(v)
	}
	s, err := strconv.ParseFloat(w[1:], 64)
	a.check(err)
	return Base + dunlin.Time(math.Round(s*1e6))
}

// value is a reading's: a number, true, false, a text in quotes, or 0x and the digits of bytes.
func (a *args) value(r *dunlin.Record) {
	switch w := a.next(); {
	case w == "true", w == "false":
		r.Kind = dunlin.Boolean
		if w == "true" {
			r.Num = 1
		}
	case strings.HasPrefix(w, `"`):
		r.Kind, r.Str = dunlin.Text, w[1:]
	case strings.HasPrefix(w, "0x"):
		b, err := hex.DecodeString(w[2:])
		a.check(err)
		r.Kind, r.Str = dunlin.Data, string(b)
	default:
		v, err := strconv.ParseFloat(w, 64)
		a.check(err)
		r.Kind, r.Num = dunlin.Number, v
	}
}

// bytes are all words left, joined.
func (a *args) bytes() (b []byte) {
	for len(a.rest) > 0 && a.err == nil {
		b = append(b, a.atom()...)
	}
	return b
}

// atom is a piece of bytes: hex, a text in quotes, a number of a type (u8:1, i16:-5, u32:7, i64:9, f64:1.5), a moment
// (t:+10), or so many zeros (zeros:8).
func (a *args) atom() []byte {
	w := a.next()
	if strings.HasPrefix(w, `"`) {
		return []byte(w[1:])
	}
	typ, v, typed := strings.Cut(w, ":")
	if !typed {
		b, err := hex.DecodeString(w)
		a.check(err)
		return b
	}
	switch typ {
	case "f64":
		f, err := strconv.ParseFloat(v, 64)
		a.check(err)
		return binary.LittleEndian.AppendUint64(nil, math.Float64bits(f))
	case "t":
		return binary.LittleEndian.AppendUint64(nil, uint64(a.moment(v)))
	}
	n, err := strconv.ParseInt(v, 0, 64)
	a.check(err)
	switch typ {
	case "u8":
		return []byte{byte(n)}
	case "i16", "u16":
		return binary.LittleEndian.AppendUint16(nil, uint16(n))
	case "u32":
		return binary.LittleEndian.AppendUint32(nil, uint32(n))
	case "i64":
		return binary.LittleEndian.AppendUint64(nil, uint64(n))
	case "zeros":
		return make([]byte, min(max(n, 0), 1<<20))
	}
	a.check(fmt.Errorf("no type %s", typ))
	return nil
}
