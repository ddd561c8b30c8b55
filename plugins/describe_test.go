package plugins

import (
	"fmt"
	"strings"
	"testing"

	"github.com/dunlin-iot/dunlin/plugins/abi"
)

// describe reads an input frame as a guest would and writes it down.
func describe(t *testing.T, frame []byte) string {
	t.Helper()
	var b strings.Builder
	r := abi.NewReader(frame)
	for {
		kind, _, rec, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if rec == nil {
			return b.String()
		}
		switch kind {
		case abi.KindBatch:
			now, devices, inputs, err := abi.Batch(rec)
			must(t, err)
			fmt.Fprintf(&b, "batch %d %d %d | ", now, devices, inputs)
		case abi.KindDevice:
			seq, id, state, err := abi.Device(rec)
			must(t, err)
			fmt.Fprintf(&b, "device %d %s %s | ", seq, id, state)
		case abi.KindName:
			id, name, err := abi.Name(rec)
			must(t, err)
			fmt.Fprintf(&b, "%d=%s ", id, name)
		case abi.KindTelemetry:
			received, flags, readings, err := abi.Telemetry(rec)
			must(t, err)
			fmt.Fprintf(&b, "telemetry %d %d: ", received, flags)
			for i := range len(readings) / abi.ReadingSize {
				x := abi.ReadingAt(readings, i)
				if x.Kind >= abi.ValueText {
					off, n := x.Span()
					fmt.Fprintf(&b, "%d/%d %d %q; ", x.Metric, x.Unit, x.Time, rec[off:off+n])
				} else {
					fmt.Fprintf(&b, "%d/%d %d %v; ", x.Metric, x.Unit, x.Time, x.Value)
				}
			}
			b.WriteString(" | ")
		case abi.KindRaw:
			received, format, _, payload, err := abi.Raw(rec)
			must(t, err)
			fmt.Fprintf(&b, "raw %d %d %x | ", received, format, payload)
		case abi.KindTimer:
			due, name, err := abi.Timer(rec)
			must(t, err)
			fmt.Fprintf(&b, "timer %d %s | ", due, name)
		default:
			fmt.Fprintf(&b, "kind %d | ", kind)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
