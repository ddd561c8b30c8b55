package replay

import (
	"math"
	"slices"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

// Bounds of the list of failures.
const (
	failuresMax     = 16 // reported
	failuresKeptMax = 64
)

// costs count what a sim uses, and why it fails.
type costs struct {
	dunlin.BacktestCost
	nanos    uint64 // µs
	alerts   uint64
	failures map[string]*dunlin.BacktestFailure // by reason without its numbers
}

// turn counts a settled turn.
func (k *costs) turn(c *dunlin.Change, at dunlin.Time) {
	k.Inputs += uint64(len(c.Inputs))
	k.alerts += uint64(len(c.Alerts))
	st := &c.Stages[len(c.Stages)-1]
	if st.Failure != "" {
		k.fail(st.Failure, c.Device, at, len(c.Inputs))
	}
	for i := range st.Refused {
		k.fail(st.Refused[i].Reason, c.Device, at, 1)
	}
}

func (k *costs) fail(reason string, dev dunlin.DeviceID, at dunlin.Time, inputs int) {
	k.Failed += uint64(inputs)
	k.add(dunlin.BacktestFailure{Reason: reason, Inputs: uint64(inputs), Device: dev, At: at})
}

// add counts a failure with those of its kind; more kinds than are kept are all one.
func (k *costs) add(f dunlin.BacktestFailure) {
	kind := withoutNumbers(f.Reason)
	if k.failures == nil {
		k.failures = make(map[string]*dunlin.BacktestFailure)
	}
	if k.failures[kind] == nil {
		if len(k.failures) >= failuresKeptMax {
			if kind = "other"; k.failures[kind] == nil {
				f.Reason = "other reasons, such as: " + f.Reason
			}
		}
		if k.failures[kind] == nil {
			k.failures[kind] = &dunlin.BacktestFailure{Reason: f.Reason, Device: f.Device, At: f.At}
		}
	}
	k.failures[kind].Inputs += f.Inputs
}

// withoutNumbers makes reasons equal that differ in amounts and moments only.
func withoutNumbers(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}, s)
}

// merge adds another shard's.
func (k *costs) merge(o *costs) {
	k.Fuel += o.Fuel
	k.nanos += o.nanos
	k.Inputs += o.Inputs
	k.Failed += o.Failed
	k.alerts += o.alerts
	for _, f := range o.failures {
		k.add(*f)
	}
}

// worst are the failures of most inputs.
func (k *costs) worst() []dunlin.BacktestFailure {
	var fs []dunlin.BacktestFailure
	for _, f := range k.failures {
		fs = append(fs, *f)
	}
	slices.SortFunc(fs, func(a, b dunlin.BacktestFailure) int {
		if a.Inputs != b.Inputs {
			return int(min(max(int64(b.Inputs)-int64(a.Inputs), -1), 1))
		}
		return strings.Compare(a.Reason, b.Reason)
	})
	return fs[:min(len(fs), failuresMax)]
}

// sameAlert reports whether two transitions are the same, values compared by bits.
func sameAlert(a, b *dunlin.Alert) bool {
	x, y := *a, *b
	x.Value, y.Value = nil, nil
	if x != y || (a.Value == nil) != (b.Value == nil) {
		return false
	}
	return a.Value == nil || math.Float64bits(*a.Value) == math.Float64bits(*b.Value)
}
