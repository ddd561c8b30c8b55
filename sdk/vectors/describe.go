package vectors

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/dunlin-iot/dunlin/plugins/abi"
)

// Describe writes an answer's frame down in the words of the sources, a line for each record, with the bytes at the end.
func Describe(frame []byte) string {
	var b strings.Builder
	r := abi.NewReader(frame)
	for {
		at := r.Offset()
		kind, flags, rec, err := r.Next()
		if err != nil {
			fmt.Fprintf(&b, "no record: %x\n", frame[at:])
			return b.String()
		}
		if rec == nil {
			return b.String()
		}
		fmt.Fprintf(&b, "%-60s %x\n", describe(kind, flags, rec), frame[at:r.Offset()])
	}
}

func describe(kind abi.Kind, flags uint16, rec []byte) string {
	bad := fmt.Sprintf("kind %d, flags %d", kind, flags)
	text := func(err error, format string, args ...any) string {
		if err != nil {
			return bad + ": " + err.Error()
		}
		return fmt.Sprintf(format, args...)
	}
	switch kind {
	case abi.KindGroup:
		i, err := abi.Group(rec)
		return text(err, "group %d", i)
	case abi.KindState:
		return fmt.Sprintf("state %x", abi.Body(rec))
	case abi.KindLog:
		return fmt.Sprintf("log %d %q", flags, abi.Body(rec))
	case abi.KindAlert:
		a, err := abi.ReadAlert(flags, rec)
		word := "clear"
		switch flags & 3 {
		case abi.FlagRaise:
			word = "raise"
		case abi.FlagUpdate:
			word = "update"
		case abi.FlagRaise | abi.FlagUpdate:
			word = "raise-update"
		}
		return text(err, "%s %d %s %s severity=%d value=%s %q", word, a.Input, a.Rule, orDash(a.Key), a.Severity, number(a.Value), a.Text)
	case abi.KindReading:
		d, err := abi.ReadDerived(rec)
		return text(err, "reading %s %s t=%d kind=%d %s %q", d.Metric, orDash(d.Unit), d.Time, d.Kind, number(d.Value), d.Bytes)
	case abi.KindSet:
		due, name, err := abi.ReadSet(rec)
		return text(err, "set %s t=%d", name, due)
	case abi.KindError:
		if flags&abi.FlagInput == 0 {
			return fmt.Sprintf("error %q", abi.Body(rec))
		}
		i, why, err := abi.ReadInputError(rec)
		return text(err, "refuse %d %q", i, why)
	case abi.KindCommand:
		c, err := abi.ReadCommand(rec)
		return text(err, "command %s %d t=%d %x", c.Name, c.Format, c.Deadline, c.Payload)
	case abi.KindPublish:
		p, err := abi.ReadPublish(rec)
		return text(err, "publish %s %d %x", p.Topic, p.Format, p.Payload)
	}
	return bad
}

func orDash(b []byte) string {
	if len(b) == 0 {
		return "-"
	}
	return string(b)
}

func number(v float64) string {
	if math.IsNaN(v) {
		return fmt.Sprintf("nan(%x)", math.Float64bits(v))
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}
