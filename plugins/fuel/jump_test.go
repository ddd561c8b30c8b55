package fuel_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/dunlin-iot/dunlin/plugins/fuel"
)

// dispatches makes functions such as the Go compiler does, out of a random number generator: loops around a br_table, whose arms
// jump forward, back and out, in ways that look like a jump and are none, and within one another. Each arm that is passed
// goes into the result, so a jump to a wrong one changes it.
type dispatches struct {
	r     *rand.Rand
	code  []byte
	arms  int
	depth int   // of blocks
	loops []int // at what depth the dispatches around begin
}

// Locals: 0 and 1 say where dispatches lead, 2 is the number of arms left to pass, 3 the result.
const (
	dispatchSteps  = 2
	dispatchResult = 3
)

func (d *dispatches) put(b ...byte) { d.code = append(d.code, b...) }

func (d *dispatches) open(op byte) {
	d.put(op, 0x40)
	d.depth++
}

func (d *dispatches) close() {
	d.put(0x0b)
	d.depth--
}

// loop is a dispatch on local 0 or 1.
func (d *dispatches) loop() {
	local := byte(d.r.IntN(2))
	d.open(0x03)
	d.loops = append(d.loops, d.depth)
	blocks := 1 + d.r.IntN(6)
	for range blocks {
		d.open(0x02)
	}
	d.put(0x20, local)
	if d.r.IntN(8) == 0 { // not at once
		d.put(0x01)
	}
	labels := d.r.IntN(8)
	d.put(0x0e, byte(labels))
	for range labels + 1 {
		label := d.r.IntN(blocks)
		if d.r.IntN(8) == 0 {
			label = d.r.IntN(d.depth)
		}
		d.put(byte(label))
	}
	for range blocks {
		d.close()
		d.arm()
	}
	d.loops = d.loops[:len(d.loops)-1]
	d.close()
}

func (d *dispatches) arm() {
	d.arms++
	d.put(0x20, dispatchResult, 0x41, 31, 0x6c, 0x41, byte(d.arms%64), 0x6a, 0x21, dispatchResult) // result = 31 result + arm
	d.put(0x20, dispatchSteps, 0x41, 1, 0x6b, 0x22, dispatchSteps, 0x45, 0x04, 0x40)               // if --steps == 0
	d.put(0x20, dispatchResult, 0x0f, 0x0b)                                                        // return result
	switch d.r.IntN(6) {
	case 0:
	case 1:
		if len(d.loops) < 3 && d.arms < 60 {
			d.loop()
		}
	case 2, 3:
		d.jump()
	default:
		d.put(0x20, dispatchResult, 0x41, 1, 0x71)
		d.open(0x04)
		d.jump()
		if d.r.IntN(2) == 0 {
			d.put(0x05)
			d.jump()
		}
		d.close()
	}
}

// jump is a jump, or nearly one.
func (d *dispatches) jump() {
	to, local := byte(d.r.IntN(10)), byte(d.r.IntN(2))
	switch d.r.IntN(8) {
	case 0: // beyond all labels
		d.put(0x41, 0x7f, 0x21, local)
	case 1: // kept on the stack as well, or not put into the local at all
		if d.r.IntN(2) == 0 {
			d.put(0x41, to, 0x22, local, 0x1a)
		} else {
			d.put(0x41, to, 0x20, 1-local, 0x21, local)
		}
	case 2: // by way of the other
		d.put(0x41, to, 0x21, 1-local, 0x20, 1-local, 0x21, local)
	case 3: // who comes here is not only who set it
		d.put(0x41, to, 0x21, local)
		d.open(0x02)
		d.put(0x41, byte(d.r.IntN(10)), 0x21, local, 0x20, dispatchResult, 0x41, 2, 0x71, 0x0d, 0)
		d.put(0x41, byte(d.r.IntN(10)), 0x21, local)
		d.close()
	default:
		d.put(0x41, to, 0x21, local)
	}
	to = byte(d.r.IntN(d.depth))
	if d.r.IntN(8) > 0 {
		to = byte(d.depth - d.loops[d.r.IntN(len(d.loops))])
	}
	d.put(0x0c, to)
}

// module is a function "f" of local 0 and the steps.
func (d *dispatches) module() []byte {
	d.loop()
	body := append([]byte{1, 2, 0x7f}, d.code...) // two locals more
	body = append(body, 0x20, dispatchResult, 0x0b)
	return append([]byte("\x00asm\x01\x00\x00\x00\x01\x08\x01\x60\x03\x7f\x7f\x7f\x01\x7f\x03\x02\x01\x00\x07\x05\x01\x01f\x00\x00"), codeSection(body)...)
}

func codeSection(body []byte) []byte {
	number := func(n int) []byte { return []byte{byte(n) | 0x80, byte(n>>7) | 0x80, byte(n >> 14)} }
	content := append([]byte{1}, number(len(body))...)
	content = append(content, body...)
	return append(append([]byte{10}, number(len(content))...), content...)
}

// A jump that is cut short leads where it led.
func TestJumpsLeadWhereTheyLed(t *testing.T) {
	n := 1_000
	if testing.Short() {
		n = 200
	}
	rt := wazero.NewRuntimeWithConfig(t.Context(), features())
	defer rt.Close(t.Context())
	ended := 0
	for seed := range uint64(n) {
		for from := range 4 {
			ok, err := sameJumps(t.Context(), rt, seed, from)
			if err != nil {
				t.Fatalf("seed %d from %d: %v", seed, from, err)
			}
			if ok {
				ended++
			}
		}
	}
	t.Logf("%d of %d ended", ended, 4*n)
	if ended < n {
		t.Errorf("only %d of %d calls ended", ended, 4*n)
	}
}

func FuzzJumpsLeadWhereTheyLed(f *testing.F) {
	f.Add(uint64(0), uint8(0))
	rt := wazero.NewRuntimeWithConfig(f.Context(), features())
	f.Fuzz(func(t *testing.T, seed uint64, from uint8) {
		if _, err := sameJumps(t.Context(), rt, seed, int(from)); err != nil {
			t.Fatal(err)
		}
	})
}

// sameJumps compares a function as it is and rewritten. It ends after some arms; ended is false if it went round in a circle
// without arms until the fuel was burnt. If that doesn't stop it, or a function that goes on and on, the test hangs.
func sameJumps(ctx context.Context, rt wazero.Runtime, seed uint64, from int) (ended bool, err error) {
	d := &dispatches{r: rand.New(rand.NewPCG(seed, 0))}
	plain := d.module()
	m, err := fuel.Parse(plain)
	if err != nil {
		return false, err
	}
	metered, err := m.Rewrite(0)
	if err != nil {
		return false, err
	}
	const steps, forever = 200, 1<<31 - 1
	if _, _, err := runJumps(ctx, rt, metered, from, forever); err != nil {
		return false, err
	}
	got, ended, err := runJumps(ctx, rt, metered, from, steps)
	if err != nil || !ended {
		return false, err
	}
	want, _, err := runJumps(ctx, rt, plain, from, steps)
	if err == nil && got != want {
		err = fmt.Errorf("returns %#x, want %#x", got, want)
	}
	return true, err
}

func runJumps(ctx context.Context, rt wazero.Runtime, b []byte, from, steps int) (result uint64, ended bool, err error) {
	mod, err := rt.InstantiateWithConfig(ctx, b, wazero.NewModuleConfig().WithName(""))
	if err != nil {
		return 0, false, err
	}
	defer mod.Close(ctx)
	counter, _ := mod.ExportedGlobal(fuel.GlobalName).(api.MutableGlobal)
	if counter != nil {
		counter.Set(littleFuel)
	}
	r, err := mod.ExportedFunction("f").Call(ctx, uint64(from), 3, uint64(steps))
	switch {
	case err == nil && counter != nil && int64(counter.Get()) >= littleFuel:
		return 0, false, errors.New("burnt nothing")
	case err == nil:
		return r[0], true, nil
	case counter != nil && int64(counter.Get()) < 0:
		return 0, false, nil
	}
	return 0, false, err
}
