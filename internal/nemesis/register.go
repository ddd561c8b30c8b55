package nemesis

import (
	"fmt"
	"math"
	"time"

	"github.com/anishathalye/porcupine"
)

// registerOp is a write of a device's temperature, or a read.
type registerOp struct {
	write bool
	value int64
}

// registerModel is one device's newest temperature. A read before the first write sees 0.
func registerModel(first int64) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return first },
		Step: func(state, input, output any) (bool, any) {
			op := input.(registerOp)
			if op.write {
				return true, op.value
			}
			return output.(int64) == state.(int64), state
		},
		DescribeOperation: func(input, output any) string {
			if op := input.(registerOp); op.write {
				return fmt.Sprintf("write %d", op.value)
			}
			return fmt.Sprintf("read %v", output)
		},
	}
}

// linearizable checks what happened to one device since its register was first.
func linearizable(first int64, writes []write, reads []reading) (porcupine.CheckResult, porcupine.LinearizationInfo) {
	ops := make([]porcupine.Operation, 0, len(writes)+len(reads))
	for _, w := range writes {
		op := porcupine.Operation{ClientId: 0, Input: registerOp{true, w.value}, Call: int64(w.call), Output: int64(0), Return: int64(w.done)}
		if w.done == 0 {
			op.Return = math.MaxInt64 // it may still happen
		}
		ops = append(ops, op)
	}
	for _, r := range reads {
		ops = append(ops, porcupine.Operation{ClientId: 1, Input: registerOp{}, Call: int64(r.call), Output: r.value, Return: int64(r.done)})
	}
	return porcupine.CheckOperationsVerbose(registerModel(first), ops, 20*time.Second)
}

// blame names the first read that can't be right by itself: of a value that was overwritten before the question, or not yet
// sent at the answer. "" if each is possible alone.
func (b *Bench) blame(first int64, writes []write, reads []reading) string {
	for _, r := range reads {
		least, at := first, 0
		for i, w := range writes {
			if w.done != 0 && w.done < r.call {
				least, at = w.value, i
			}
		}
		ok := r.value == least
		for _, w := range writes[at:] {
			ok = ok || r.value == w.value && w.call < r.done
		}
		switch {
		case !ok && least == first:
			return fmt.Sprintf("%s answered %d to a question from %.3f to %.3f s, when %d stood there", b.procs[r.node].name, r.value, r.call.Seconds(),
				r.done.Seconds(), first)
		case !ok:
			return fmt.Sprintf("%s answered %d to a question from %.3f to %.3f s, when %d was acked at %.3f s", b.procs[r.node].name, r.value,
				r.call.Seconds(), r.done.Seconds(), least, writes[at].done.Seconds())
		}
	}
	return ""
}
