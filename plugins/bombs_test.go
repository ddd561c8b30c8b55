package plugins_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins"
	"github.com/dunlin-iot/dunlin/plugins/abi"
)

// splice returns the module with a section in place of its own, or where it belongs.
func splice(wasm []byte, id byte, content []byte) []byte {
	order := []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 10, 11}
	rank := bytes.IndexByte(order, id)
	out, rest, done := append([]byte(nil), wasm[:8]...), wasm[8:], false
	for len(rest) > 0 {
		n, width := 0, 0
		for shift := 0; ; shift += 7 {
			c := rest[1+width]
			n |= int(c&0x7f) << shift
			if width++; c < 0x80 {
				break
			}
		}
		whole := rest[:1+width+n]
		if r := bytes.IndexByte(order, whole[0]); !done && r >= rank {
			out, done = append(out, section(id, content)...), true
			if r == rank {
				rest = rest[len(whole):]
				continue
			}
		}
		out, rest = append(out, whole...), rest[len(whole):]
	}
	if !done {
		out = append(out, section(id, content)...)
	}
	return out
}

// many is a vector of n equal items.
func many(n int, item []byte) []byte { return append(uleb(uint64(n)), bytes.Repeat(item, n)...) }

// bombs are modules that no compiler would make. refused is part of what the upload is told; "" if it may be taken.
func bombs() map[string]struct {
	wasm    []byte
	refused string
} {
	type bomb = struct {
		wasm    []byte
		refused string
	}
	good := plugin(nil).build()
	change := func(f func(m *wasm)) []byte {
		m := plugin(nil)
		f(m)
		return m.build()
	}
	start := func(body []byte) []byte {
		return change(func(m *wasm) {
			m.funcs = append(m.funcs, fn{body: body})
			m.start = fnExtra
		})
	}
	body := func(locals int, b []byte) []byte {
		return change(func(m *wasm) { m.funcs = append(m.funcs, fn{locals: [][2]int{{locals, i64}}, body: b}) })
	}
	custom := func(name string, n int, content []byte) []byte {
		return append(bytes.Clone(good), bytes.Repeat(section(0, code(str(name), content)), n)...)
	}
	exports := func(n int) []byte {
		return change(func(m *wasm) {
			m.noMem = false
			for i := range n {
				m.funcs = append(m.funcs, fn{export: fmt.Sprintf("export-%07d", i)})
			}
		})
	}
	table := func(limits []byte) []byte { return change(func(m *wasm) { m.table = code(0x70, limits) }) }
	longName := strings.Repeat("n", 900_000)
	segment := code(0, i32c(0), end) // active, at 0
	return map[string]bomb{
		"start loops":            {start(code(loop, void, br, 0, end)), "start function: fuel exhausted"},
		"start traps":            {start(code(unreachable)), "start function: trap: unreachable"},
		"start recurses":         {start(call(fnExtra)), "start function: "},
		"start eats memory":      {start(code(loop, void, i32c(16), 0x40, 0, drop, br, 0, end)), "start function: "},
		"start is not there":     {splice(good, 8, uleb(99)), "function 99 does not exist"},
		"start is the runtime's": {splice(good, 8, uleb(4)), "function 4 does not exist"},
		"start with parameters":  {splice(good, 8, uleb(fnBuffer)), "does not validate"},

		"a table of 4 billion":      {table(code(0, uleb(1<<32-1))), "elements, at most"},
		"a table up to 4 billion":   {table(code(1, 1, uleb(1<<32-1))), ""},
		"a table of a million":      {table(code(0, uleb(1<<20))), ""},
		"16 tables":                 {splice(good, 4, many(16, code(0x70, 0, uleb(1<<16)))), ""},
		"17 tables":                 {splice(good, 4, many(17, code(0x70, 0, 1))), "17 tables"},
		"a hundred thousand tables": {splice(good, 4, many(100_000, code(0x70, 0, 1))), "100000 tables"},

		"elements for the runtime's table": {splice(good, 9, vec(code(segment, uleb(1), uleb(0)))), "table 0 does not exist"},
		"elements of the runtime":          {splice(table(code(0, 1)), 9, vec(code(segment, uleb(1), uleb(5)))), "function 5 does not exist"},
		"elements beyond the table":        {splice(table(code(0, 1)), 9, vec(code(0, i32c(100), end, many(2, uleb(0))))), ""},
		"half a million elements":          {splice(good, 9, vec(code(1, 0, many(500_000, uleb(0))))), ""},
		"many element segments":            {splice(good, 9, many(300_000, code(1, 0, 0))), ""},
		"elements that lie":                {splice(good, 9, vec(code(1, 0, uleb(1<<31)))), "do not fit"},
		"data beyond the memory":           {splice(good, 11, vec(code(0, i32c(-8), end, str("too far away")))), "instantiate"},
		"data of 15 MiB":                   {splice(good, 11, vec(code(1, uleb(15<<20), make([]byte, 15<<20)))), ""},
		"many data segments":               {splice(good, 11, many(300_000, code(1, 0))), ""},
		"data that lie":                    {splice(good, 11, vec(code(1, uleb(1<<31)))), "too early"},
		"data counted wrong":               {splice(good, 12, uleb(7)), "does not validate"},

		"10,000 locals":             {body(10_000, nil), ""},
		"locals that overflow":      {splice(good, 10, vec(code(uleb(12), uleb(2), uleb(1<<32-1), i64, uleb(1<<31), i64, end), nil, nil, nil)), "parse"},
		"50,000 blocks in sequence": {body(1, bytes.Repeat(code(block, void, end), 50_000)), "blocks"},
		"deep blocks":               {body(1, append(bytes.Repeat(code(block, void), 9_000), bytes.Repeat([]byte{end}, 9_000)...)), "deeper than 8000"},
		"ifs in ifs":                {body(1, append(bytes.Repeat(code(i32c(1), ifop, void), 5_000), bytes.Repeat([]byte{end}, 5_000)...)), ""},
		"a wide br_table":           {body(1, code(i32c(0), 0x0e, many(49_999, uleb(0)), uleb(0))), ""},
		"a wider br_table":          {body(1, code(i32c(0), 0x0e, many(60_000, uleb(0)), uleb(0))), "branches in tables"},
		"a br_table that lies":      {body(1, code(i32c(0), 0x0e, uleb(1<<31))), "do not fit"},
		"branches to nowhere":       {body(1, code(br, uleb(1<<30))), "branch to block"},
		"a large stack":             {body(1, append(bytes.Repeat(i64c(1), 200_000), bytes.Repeat([]byte{drop}, 200_000)...)), ""},

		"1,001 types":           {splice(good, 1, many(1001, code(0x60, 0, 0))), "1001 types"},
		"a type of 1,001":       {splice(good, 1, vec(code(0x60, many(1001, []byte{i32}), 0))), "1001 parameters"},
		"types that lie":        {splice(good, 1, uleb(1<<32-1)), "do not fit"},
		"functions that lie":    {splice(good, 3, uleb(1<<20)), "do not fit"},
		"50,001 functions":      {change(func(m *wasm) { m.funcs = append(m.funcs, make([]fn, 50_001)...) }), "types"},
		"a function of no type": {splice(good, 3, code(4, 0, 1, 2, 99)), "unknown type"},
		"globals that lie":      {splice(good, 6, uleb(1<<32-1)), "do not fit"},
		"100,000 globals":       {splice(good, 6, many(100_000, code(i32, 0, i32c(1), end))), ""},
		"a global of globals":   {splice(good, 6, vec(code(i64, 1, 0x23, 0, end))), "does not validate"},

		"900 exports":             {exports(900), ""},
		"an export of 1 MiB":      {change(func(m *wasm) { m.funcs = append(m.funcs, fn{export: longName}) }), ""},
		"an import of 1 MiB":      {plugin(nil, imp{module: "env", name: longName}).build(), "imports"},
		"names that are no text":  {change(func(m *wasm) { m.funcs = append(m.funcs, fn{export: "\xff\xfe"}) }), "not UTF-8"},
		"100,000 custom sections": {custom("x", 100_000, nil), ""},
		"a name of 2 MiB":         {custom(longName+longName, 1, nil), "bytes of a name"},
		"a custom section's name": {custom(longName, 1, nil), ""},
		"producers of rubbish":    {custom("producers", 2, []byte{0xff, 0xff, 0xff, 0xff, 0x0f}), ""},
		"names of rubbish":        {custom("name", 1, []byte{1, 0xff, 0xff, 0xff, 0xff, 0x0f, 1, 1}), "does not validate"},
		"names twice":             {custom("name", 2, nil), "does not validate"},
		"a manifest of rubbish":   {custom(abi.ManifestSection, 1, []byte("{")), "manifest"},
		"a section twice":         {append(bytes.Clone(good), section(10, many(0, nil))...), "out of order"},
		"a section of 2 GiB":      {append(bytes.Clone(good), 11, 0xff, 0xff, 0xff, 0xff, 0x07), "beyond the end"},
		"a section of no kind":    {append(bytes.Clone(good), section(13, nil)...), "section 13"},
		"a number without end":    {append(bytes.Clone(good), 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80), "32 bits"},
		"64-bit memory":           {splice(good, 5, vec(code(4, 1))), "not supported"},
		"two memories":            {splice(good, 5, many(2, code(0, 1))), "2 memories"},
		"the arm's name":          {change(func(m *wasm) { m.funcs = append(m.funcs, fn{export: "dunlin_fuel_arm"}) }), "runtime's own"},
		"the refill":              {body(1, call(5)), "function 5 does not exist"},
		"a call of the arm":       {body(1, code(0xd0, 0x70, call(6))), "function 6 does not exist"},
		"a call by its table":     {body(1, code(i32c(0), 0x11, 0, 0)), "table 0 does not exist"},
		"a look at its table":     {body(1, code(i32c(0), 0x25, 0, drop)), "table 0 does not exist"},
		"its table, overwritten":  {body(1, code(i32c(0), 0xd0, 0x70, 0x26, 0)), "table 0 does not exist"},
		"its table, filled":       {body(1, code(i32c(0), 0xd0, 0x70, i32c(1), 0xfc, 17, 0)), "table 0 does not exist"},
		"a reference to it":       {body(1, code(0xd2, 5, drop)), "function 5 does not exist"},
	}
}

// Whatever is uploaded, and run if it is taken: the answer comes soon, and says why; nothing panics; and another domain's
// readings are worked off as ever.
func TestBombs(t *testing.T) {
	b := newBench(t, plugins.Config{})
	safe := b.stage(plugin(nil).build(), "")
	for name, bomb := range bombs() {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			began := time.Now()
			_, err := b.Check(t.Context(), bomb.wasm)
			took := time.Since(began)
			refusal, isRefusal := errors.AsType[*dunlin.ModuleError](err)
			switch {
			case took > 10*time.Second:
				t.Errorf("the upload takes %v", took)
			case err != nil && !isRefusal:
				t.Errorf("the upload: %v", err)
			case bomb.refused == "" && err != nil:
				t.Errorf("the upload: %v", err)
			case bomb.refused != "" && (!isRefusal || !strings.Contains(refusal.Check+": "+refusal.Detail, bomb.refused)):
				t.Errorf("the upload: %v, want %q", err, bomb.refused)
			case isRefusal && len(refusal.Detail) > 4<<10:
				t.Errorf("the refusal has %d bytes", len(refusal.Detail))
			}
			works := batchOf(2)
			process(t, b, b.stage(bomb.wasm, ""), t0, works...) // as if another node had taken it
			if ran := works[1].Outcome.Failure == ""; ran != (bomb.refused == "") {
				t.Errorf("run: %.200q", works[1].Outcome.Failure)
			}
			unharmed(t, b, safe)
		})
	}
}

// unharmed checks that another domain gets its results, and quickly.
func unharmed(t *testing.T, b *bench, st *dunlin.Stage) {
	t.Helper()
	works := batchOf(3)
	if err := b.Process("another", st, 0, t0, works); err != nil {
		t.Fatal(err)
	}
	for i, w := range works {
		if w.Outcome.Failure != "" || sum(w.Outcome.State) != float64(3*i) {
			t.Errorf("another domain's device %d: %+v", i, w.Outcome)
		}
	}
}

// A module cut anywhere is refused, and one with a few wrong bytes is refused or runs: neither harms anything.
func TestBrokenModules(t *testing.T) {
	b := newBench(t, plugins.Config{})
	safe := b.stage(plugin(nil).build(), "")
	m := plugin(code(unreachable), wasiImport("fd_write", "iiii", true))
	m.table, m.data, m.start = code(0x70, 0, 4), []byte("data"), fnExtra+1
	m.funcs = append(m.funcs, fn{})
	module := m.build()
	whole := len(module) - len(section(11, vec(code(0, i32c(dataAt), end, str("data"))))) // data may be missing
	for n := range len(module) {
		if _, err := b.Check(t.Context(), module[:n]); !errors.Is(err, dunlin.ErrInvalid) && n != whole {
			t.Errorf("%d of %d bytes: %v", n, len(module), err)
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	taken := 0
	for range 300 {
		bad := bytes.Clone(module)
		for range 1 + rng.IntN(3) {
			bad[rng.IntN(len(bad))] = byte(rng.Uint32())
		}
		if _, err := b.Check(t.Context(), bad); err == nil {
			taken++
		} else if !errors.Is(err, dunlin.ErrInvalid) {
			t.Errorf("%x: %v", bad, err)
		}
		process(t, b, b.stage(bad, ""), t0, append(batchOf(2), raw("x", "x"))...)
	}
	unharmed(t, b, safe)
	t.Logf("%d of 300 broken modules can be plugins", taken)
}

// What a guest may do with its buffers and answers: each is worked off, or told as what it is.
func TestStrangeBuffersAndAnswers(t *testing.T) {
	process2 := func(result []byte) *wasm { // dunlin_process returns at once
		m := plugin(nil)
		m.funcs[fnProcess] = fn{params: []byte{i32}, results: []byte{i64}, export: abi.ExportProcess, body: result}
		return m
	}
	buffer := func(body []byte) *wasm {
		m := plugin(nil)
		m.funcs[fnBuffer].body = body
		return m
	}
	logs := bytes.Repeat(abi.AppendText(nil, abi.KindLog, abi.LogInfo, "line\nline\nline"), 1300)
	logger := process2(i64c(dataAt<<32 | int64(len(logs))))
	logger.memory, logger.data = code(0, uleb(64)), logs
	timers := abi.AppendGroup(nil, 0)
	for i := range 1000 {
		timers = abi.AppendSet(timers, int64(t0), fmt.Sprint("t", i))
	}
	timer := process2(i64c(dataAt<<32 | int64(len(timers))))
	timer.data = timers
	const any = "?" // the guest looks for its input elsewhere
	for name, c := range map[string]struct {
		m    *wasm
		want string // "": the call is taken
	}{
		"its own input as the answer":       {process2(code(i64c(bufAt<<32), get(0), 0xad, 0x84)), ""},
		"an answer that ends the memory":    {process2(i64c((64<<16-8)<<32 | 8)), "bad frame: at byte 0"},
		"an answer one byte beyond":         {process2(i64c((64<<16-8)<<32 | 9)), "bad frame: the answer at"},
		"an answer that wraps around":       {process2(i64c(0x7fffff00<<32 | 0x200)), "bad frame: the answer at"},
		"an empty answer nowhere":           {process2(i64c(0x7fffffff << 32)), "bad frame: the answer at"},
		"3,900 log lines":                   {logger, ""},
		"1,000 timers":                      {timer, "too many emissions"},
		"a buffer at 0":                     {buffer(i32c(0)), any},
		"a buffer of odd address":           {buffer(i32c(bufAt + 3)), any},
		"a buffer where the answer goes":    {buffer(i32c(outAt - 8)), any},
		"a buffer at the end":               {buffer(i32c(64<<16 - 4)), "bad frame: dunlin_buffer(4096)"},
		"a buffer that wraps around":        {buffer(i32c(-1)), "bad frame: dunlin_buffer(4096)"},
		"a buffer that loops":               {buffer(code(loop, void, br, 0, end, i32c(0))), "fuel exhausted"},
		"a buffer that grows the memory":    {buffer(code(i32c(1), 0x40, 0, drop, i32c(bufAt))), ""},
		"a buffer behind what it has grown": {buffer(code(i32c(1), 0x40, 0, i32c(16), 0x74)), any},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			b := newBench(t, plugins.Config{})
			works := batchOf(1)
			process(t, b, b.stage(c.m.build(), ""), t0, works...)
			got := works[0].Outcome.Failure
			if c.want == "" && got != "" || c.want != any && !strings.Contains(got, c.want) {
				t.Errorf("failure %.200q, want %q", got, c.want)
			}
			if n := len(works[0].Outcome.Timers); n > 64 {
				t.Errorf("%d timers", n)
			}
			unharmed(t, b, b.stage(plugin(nil).build(), ""))
		})
	}
}

// States as large as they may be, of many devices at a time, are worked off; a byte more is not.
func TestStatesOfManyDevicesAreBounded(t *testing.T) {
	b := newBench(t, plugins.Config{})
	state := abi.AppendText(nil, abi.KindState, 0, make([]byte, 64<<10))
	m := plugin(emit(len(state)))
	m.memory, m.data = code(0, uleb(256)), state
	st := b.stage(m.build(), "")
	var works []*dunlin.Work
	for i := range 200 { // 13 MiB of answers in one crossing, of 4 that are allowed
		works = append(works, raw(fmt.Sprint("device-", i), "x"))
	}
	process(t, b, st, t0, works...)
	for _, w := range works {
		if f := w.Outcome.Failure; f != "" && !strings.HasPrefix(f, "output too large") && !strings.HasPrefix(f, "trap: out of bounds") {
			t.Fatalf("%s: %q", w.Device, f)
		} else if f == "" && len(w.Outcome.State) != 64<<10 {
			t.Fatalf("%s: a state of %d bytes", w.Device, len(w.Outcome.State))
		}
	}
	unharmed(t, b, b.stage(plugin(nil).build(), ""))
}
