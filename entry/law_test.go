package entry_test

import (
	"bytes"
	"errors"
	"math"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/entry"
)

// The generators make everything the types can hold, not only what the runtime makes of them.
var (
	anyTime = rapid.Custom(func(t *rapid.T) dunlin.Time {
		if rapid.Bool().Draw(t, "near") {
			return t0 + dunlin.Time(rapid.Int64Range(-1e6, 1e6).Draw(t, "µs"))
		}
		return dunlin.Time(rapid.Int64().Draw(t, "time"))
	})
	anyName  = rapid.SampledFrom([]string{"", "a", "temperature", "humidity", "Cel", "default", "cold-chain", "\x00\xff"})
	anyBytes = rapid.SliceOfN(rapid.Byte(), 1, 40)
	anyFloat = rapid.Custom(func(t *rapid.T) float64 {
		switch rapid.IntRange(0, 3).Draw(t, "sort of number") {
		case 0:
			return float64(rapid.Int64Range(-1e6, 1e6).Draw(t, "n")) / 10
		case 1:
			return rapid.SampledFrom([]float64{0, math.Copysign(0, -1), math.Inf(1), math.Inf(-1), math.NaN(), 1 << 53,
				1<<53 - 1, -1 << 53, math.MaxFloat64, math.SmallestNonzeroFloat64, math.Pi, 1e15, 0.1 + 0.2}).Draw(t, "odd")
		case 2:
			return float64(rapid.Float32().Draw(t, "f32"))
		}
		return math.Float64frombits(rapid.Uint64().Draw(t, "bits"))
	})
	anyRecord = rapid.Custom(func(t *rapid.T) dunlin.Record {
		r := dunlin.Record{Metric: anyName.Draw(t, "metric"), Unit: anyName.Draw(t, "unit"), Time: anyTime.Draw(t, "time")}
		r.Kind = dunlin.ValueKind(rapid.IntRange(0, 6).Draw(t, "kind"))
		if rapid.Bool().Draw(t, "number") {
			r.Num = anyFloat.Draw(t, "num")
		}
		if rapid.Bool().Draw(t, "text") {
			r.Str = anyName.Draw(t, "str")
		}
		return r
	})
	anyInput = rapid.Custom(func(t *rapid.T) dunlin.Input {
		in := dunlin.Input{
			Kind:      dunlin.InputKind(rapid.IntRange(0, 6).Draw(t, "kind")),
			Flags:     dunlin.InputFlags(rapid.IntRange(0, 17).Draw(t, "flags")),
			Format:    dunlin.ContentFormat(rapid.SampledFrom([]int{0, 42, 110, 65535}).Draw(t, "format")),
			MessageID: rapid.SampledFrom([]uint64{0, 1, math.MaxUint64}).Draw(t, "message"),
			Received:  anyTime.Draw(t, "received"), Sender: anyName.Draw(t, "sender"), Timer: anyName.Draw(t, "timer"),
			Records: some(t, "records", anyRecord),
		}
		if rapid.Bool().Draw(t, "raw") {
			in.Payload = anyBytes.Draw(t, "payload")
		}
		return in
	})
	anyStage = rapid.Custom(func(t *rapid.T) dunlin.StageResult {
		st := dunlin.StageResult{Stage: rapid.Uint8Range(0, 3).Draw(t, "stage"), Failure: anyName.Draw(t, "failure"),
			Hash: dunlin.ModuleHash{rapid.Byte().Draw(t, "hash")}, Records: some(t, "records", anyRecord)}
		if st.StateSet = rapid.Bool().Draw(t, "set"); st.StateSet {
			st.State = []byte{}
		}
		if rapid.Bool().Draw(t, "state") {
			st.State = anyBytes.Draw(t, "bytes")
		}
		if effects.Draw(t, "effects") {
			st.Made, st.Refused = anyMade.Draw(t, "made"), some(t, "refused", anyRefusal)
		}
		return st
	})
	anyAlert = rapid.Custom(func(t *rapid.T) dunlin.Alert {
		a := dunlin.Alert{Tenant: dunlin.Tenant(anyName.Draw(t, "tenant")), Device: dunlin.DeviceID(anyName.Draw(t, "device")),
			Domain: dunlin.DomainID(anyName.Draw(t, "domain")), Rule: anyName.Draw(t, "rule"), Key: anyName.Draw(t, "key"),
			Severity: dunlin.Severity(rapid.Byte().Draw(t, "severity")), State: dunlin.AlertState(rapid.Byte().Draw(t, "state")),
			Text: anyName.Draw(t, "text"), RaisedAt: anyTime.Draw(t, "raised"), RaisedSeq: rapid.Uint64().Draw(t, "raised seq"),
			At: anyTime.Draw(t, "at"), Seq: rapid.Uint64().Draw(t, "seq"), ClearedAt: anyTime.Draw(t, "cleared")}
		if rapid.Bool().Draw(t, "value") {
			a.Value = new(anyFloat.Draw(t, "number"))
		}
		return a
	})
	anyTimer = rapid.Custom(func(t *rapid.T) dunlin.TimerSet {
		s := dunlin.TimerSet{Name: anyName.Draw(t, "name")}
		if rapid.Bool().Draw(t, "armed") {
			s.Due = anyTime.Draw(t, "due")
		}
		if rapid.Bool().Draw(t, "replaces") {
			s.Was = anyTime.Draw(t, "was")
		}
		return s
	})
	anyChange = rapid.Custom(func(t *rapid.T) dunlin.Change {
		c := dunlin.Change{
			DeviceKey: dunlin.DeviceKey{Tenant: dunlin.Tenant(anyName.Draw(t, "tenant")), Device: dunlin.DeviceID(anyName.Draw(t, "device"))},
			Domain:    dunlin.DomainID(anyName.Draw(t, "domain")), Version: rapid.Uint64().Draw(t, "version"),
			Created: rapid.Bool().Draw(t, "created"), Inputs: some(t, "inputs", anyInput), Stages: some(t, "stages", anyStage),
			Alerts: some(t, "alerts", anyAlert), Timers: some(t, "timers", anyTimer)}
		if effects.Draw(t, "effects") {
			c.Commands, c.Publish = some(t, "commands", anyCommand), some(t, "publications", anyPublication)
		}
		return c
	})
	effects = rapid.Bool()
	anyMade = rapid.Custom(func(t *rapid.T) dunlin.Made {
		return dunlin.Made{Module: rapid.Uint32Range(0, 9).Draw(t, "module"), Config: rapid.Uint32Range(0, 2).Draw(t, "config")}
	})
	anyRefusal = rapid.Custom(func(t *rapid.T) dunlin.InputError {
		return dunlin.InputError{Input: rapid.Int().Draw(t, "input"), Reason: anyName.Draw(t, "reason")}
	})
	anyCommand = rapid.Custom(func(t *rapid.T) dunlin.Command {
		return dunlin.Command{ID: anyName.Draw(t, "id"), Name: anyName.Draw(t, "name"), Payload: someBytes(t), Format: anyFormat.Draw(t, "format"),
			At: anyTime.Draw(t, "at"), Deadline: anyTime.Draw(t, "deadline")}
	})
	anyPublication = rapid.Custom(func(t *rapid.T) dunlin.Publication {
		return dunlin.Publication{Topic: anyName.Draw(t, "topic"), Payload: someBytes(t), Format: anyFormat.Draw(t, "format")}
	})
	anyFormat = rapid.Map(rapid.SampledFrom([]int{0, 42, 110, 65535}), func(f int) dunlin.ContentFormat { return dunlin.ContentFormat(f) })
	anyPut    = rapid.Custom(func(t *rapid.T) dunlin.Put {
		p := dunlin.Put{Table: rapid.OneOf(anyName, rapid.Just(dunlin.TableDeadLetters)).Draw(t, "table"), Key: anyName.Draw(t, "key")}
		if rapid.Bool().Draw(t, "value") {
			p.Value = []byte(anyName.Draw(t, "bytes"))
		}
		return p
	})
	anyEntry = rapid.Custom(func(t *rapid.T) *dunlin.Entry {
		return &dunlin.Entry{Shard: dunlin.ShardID(rapid.Uint16().Draw(t, "shard")), Term: rapid.Uint64().Draw(t, "term"),
			At: anyTime.Draw(t, "at"), Changes: some(t, "changes", anyChange), Puts: some(t, "puts", anyPut)}
	})
	anyState = rapid.Custom(func(t *rapid.T) *dunlin.DeviceState {
		s := &dunlin.DeviceState{
			DeviceKey: dunlin.DeviceKey{Tenant: dunlin.Tenant(anyName.Draw(t, "tenant")), Device: dunlin.DeviceID(anyName.Draw(t, "device"))},
			Domain:    dunlin.DomainID(anyName.Draw(t, "domain")), Version: rapid.Uint64().Draw(t, "version"),
			SeenAt: anyTime.Draw(t, "seen"), Reported: some(t, "reported", anyRecord),
			Alerts: some(t, "alerts", anyAlert), Timers: some(t, "timers", anyTimer)}
		for range rapid.IntRange(0, 3).Draw(t, "plugins") {
			s.Plugins = append(s.Plugins, dunlin.StageState{Stage: rapid.Byte().Draw(t, "stage"), State: []byte(anyName.Draw(t, "state")),
				Made: anyMade.Draw(t, "made")})
		}
		if effects.Draw(t, "effects") {
			s.Commands = some(t, "commands", anyCommand)
		}
		for range rapid.IntRange(0, 3).Draw(t, "window") {
			s.Seen = append(s.Seen, dunlin.SeenMessage{ID: rapid.Uint64().Draw(t, "id"), At: anyTime.Draw(t, "at"), Seq: rapid.Uint64().Draw(t, "seq")})
		}
		return s
	})
)

// some draws none to five; none is nil, as Decode makes it.
func some[T any](t *rapid.T, label string, g *rapid.Generator[T]) []T {
	s := rapid.SliceOfN(g, 0, 5).Draw(t, label)
	if len(s) == 0 {
		return nil
	}
	return s
}

func someBytes(t *rapid.T) []byte {
	if rapid.Bool().Draw(t, "empty") {
		return nil
	}
	return anyBytes.Draw(t, "bytes")
}

// same is DeepEqual with floats by their bits.
func same(a, b any) bool { return sameValue(reflect.ValueOf(a), reflect.ValueOf(b)) }

func sameValue(a, b reflect.Value) bool {
	switch a.Kind() {
	case reflect.Float64:
		return math.Float64bits(a.Float()) == math.Float64bits(b.Float())
	case reflect.Pointer:
		return a.IsNil() == b.IsNil() && (a.IsNil() || sameValue(a.Elem(), b.Elem()))
	case reflect.Slice:
		if a.IsNil() != b.IsNil() || a.Len() != b.Len() {
			return false
		}
		for i := range a.Len() {
			if !sameValue(a.Index(i), b.Index(i)) {
				return false
			}
		}
		return true
	case reflect.Struct:
		for i := range a.NumField() {
			if !sameValue(a.Field(i), b.Field(i)) {
				return false
			}
		}
		return true
	}
	return a.Equal(b)
}

func TestDecodeUndoesAppend(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := anyEntry.Draw(t, "entry")
		b := entry.Append(nil, e)
		got, err := entry.Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if !same(got, e) {
			t.Fatalf("got  %#v\nwant %#v", got, e)
		}
		if again := entry.Append(nil, got); !bytes.Equal(again, b) {
			t.Fatalf("the bytes of an entry differ from those of its copy:\n%x\n%x", b, again)
		}
		if uint32(b[0]) != entry.Needs(e) {
			t.Fatalf("an entry that needs version %d has version %d", entry.Needs(e), b[0])
		}
		latest, err := entry.Decode(entry.AppendAs(nil, e, entry.Version))
		if err != nil || !same(latest, e) {
			t.Fatalf("in the latest version: %v\ngot  %#v\nwant %#v", err, latest, e)
		}
	})
}

// Version 1 has all of an entry but what came later, and a build that reads only version 1 reads it.
func TestVersion1LeavesOutWhatItCannotSay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := anyEntry.Draw(t, "entry")
		b := entry.AppendAs(nil, e, 1)
		got, err := entry.Decode(b)
		if err != nil || b[0] != 1 {
			t.Fatalf("version %d: %v", b[0], err)
		}
		for i := range e.Changes {
			c := &e.Changes[i]
			c.Commands, c.Publish = nil, nil
			for j := range c.Stages {
				c.Stages[j].Made, c.Stages[j].Refused = dunlin.Made{}, nil
			}
		}
		if !same(got, e) {
			t.Fatalf("got  %#v\nwant %#v", got, e)
		}
	})
}

// What only version 2 may have is refused in bytes that say they are version 1, as a build that knows nothing else would.
func TestVersion1HasNoEffects(t *testing.T) {
	e := &dunlin.Entry{At: t0, Changes: []dunlin.Change{{DeviceKey: dunlin.DeviceKey{Tenant: "t", Device: "d"}, Version: 1,
		Commands: []dunlin.Command{{ID: "1-0", Name: "x", Deadline: t0}}}}}
	for _, e := range []*dunlin.Entry{e, {At: t0, Changes: []dunlin.Change{{Stages: []dunlin.StageResult{{Made: dunlin.Made{Module: 1}}}}}}} {
		b := entry.Append(nil, e)
		if _, err := entry.Decode(b); err != nil || b[0] != 2 {
			t.Fatalf("version %d: %v", b[0], err)
		}
		b[0] = 1
		if _, err := entry.Decode(b); !errors.Is(err, dunlin.ErrInvalid) {
			t.Errorf("read as version 1: %v", err)
		}
	}
}

// A state has the oldest version that says it, so replicas of different builds keep the same bytes.
func TestStateVersionFollowsWhatIsInIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := anyState.Draw(t, "state")
		want := byte(1)
		if len(s.Commands) > 0 {
			want = 2
		}
		for i := range s.Plugins {
			if s.Plugins[i].Made != (dunlin.Made{}) {
				want = 2
			}
		}
		if b := entry.AppendState(nil, s); b[0] != want {
			t.Fatalf("state of version %d, want %d: %#v", b[0], want, s)
		}
	})
}

func TestDecodeStateUndoesAppendState(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := anyState.Draw(t, "state")
		used := anyState.Draw(t, "state before it in the same memory")
		if err := entry.DecodeStateInto(used, entry.AppendState(nil, s)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(entry.AppendState(nil, used), entry.AppendState(nil, s)) {
			t.Fatalf("into used memory: got %#v\nwant %#v", used, s)
		}
		got, err := entry.DecodeState(entry.AppendState(nil, s))
		if err != nil {
			t.Fatal(err)
		}
		if !same(got, s) {
			t.Fatalf("got  %#v\nwant %#v", got, s)
		}
	})
}

// More names than the table on the stack holds, and more than its index finds.
func TestManyNames(t *testing.T) {
	e := &dunlin.Entry{At: t0}
	for range 2 {
		c := fridgeChange("d", 1)
		for i := range 1000 {
			c.Inputs[0].Records = append(c.Inputs[0].Records,
				dunlin.Record{Metric: string(rune('0' + i)), Unit: "u", Time: t0, Kind: dunlin.Number, Num: float64(i)})
		}
		e.Changes = append(e.Changes, c)
	}
	b := entry.Append(nil, e)
	got, err := entry.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if !same(got, e) {
		t.Error("an entry with 1,000 metrics comes back changed")
	}
	if first := entry.Append(nil, &dunlin.Entry{At: t0, Changes: e.Changes[:1]}); len(b)-len(first) > 5000 {
		t.Errorf("the second report of 1,000 metrics takes %d bytes: its names are spelled again", len(b)-len(first))
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(entry.Append(nil, &dunlin.Entry{}))
	f.Add(entry.Append(nil, oneReading()))
	f.Add(entry.Append(nil, fullEntry()))
	f.Add(entry.Append(nil, fullEffects()))
	f.Add(entry.AppendAs(nil, oneReading(), 2))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := entry.Decode(b)
		if err != nil {
			if !errors.Is(err, dunlin.ErrInvalid) {
				t.Fatalf("%v does not match ErrInvalid", err)
			}
			return
		}
		again, err := entry.Decode(entry.Append(nil, e))
		if err != nil {
			t.Fatal(err)
		}
		if !same(e, again) {
			t.Fatalf("got  %#v\nwant %#v", again, e)
		}
	})
}

func FuzzDecodeState(f *testing.F) {
	f.Add(entry.AppendState(nil, &dunlin.DeviceState{}))
	f.Add(entry.AppendState(nil, fullState()))
	f.Add(entry.AppendState(nil, fullStateEffects()))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := entry.DecodeState(b)
		if err != nil {
			return
		}
		again, err := entry.DecodeState(entry.AppendState(nil, s))
		if err != nil {
			t.Fatal(err)
		}
		if !same(s, again) {
			t.Fatalf("got  %#v\nwant %#v", again, s)
		}
	})
}
