package entry_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/entry"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files; then read the diff, and raise the version if bytes changed")

const t0 dunlin.Time = 1_767_225_600_000_000 // 2026-01-01T00:00:00Z

// fridgeChange is one uplink of four metrics, as a device sends it all day.
func fridgeChange(dev string, version uint64) dunlin.Change {
	at := t0.Add(-1500 * 1000) // received 1.5 ms before the entry was proposed
	num := func(metric, unit string, v float64) dunlin.Record {
		return dunlin.Record{Metric: metric, Unit: unit, Time: at, Kind: dunlin.Number, Num: v}
	}
	return dunlin.Change{
		DeviceKey: dunlin.DeviceKey{Tenant: "default", Device: dunlin.DeviceID(dev)},
		Domain:    "cold-chain", Version: version,
		Inputs: []dunlin.Input{{
			Kind: dunlin.InputTelemetry, Format: dunlin.FormatSenMLJSON, MessageID: 0x0123456789abcdef, Received: at,
			Records: []dunlin.Record{
				num("temperature", "Cel", 4.5), num("humidity", "%RH", 61.2), num("battery", "V", 3.021),
				{Metric: "door", Time: at, Kind: dunlin.Boolean, Num: 1},
			},
		}},
	}
}

func oneReading() *dunlin.Entry {
	return &dunlin.Entry{Shard: 7, Term: 3, At: t0, Changes: []dunlin.Change{fridgeChange("fridge-0007", 1234)}}
}

// fullEntry has one of everything.
func fullEntry() *dunlin.Entry {
	c := fridgeChange("fridge-7", 42)
	c.Created = true
	c.Inputs = append(c.Inputs,
		dunlin.Input{Kind: dunlin.InputRaw, Flags: dunlin.FlagMayRepeat | dunlin.FlagExchange, Format: dunlin.FormatOctets, MessageID: 9,
			Received: t0, Sender: "gateway-1", Payload: []byte{0, 1, 2}},
		dunlin.Input{Kind: dunlin.InputTimer, Received: t0.Add(1e9), Timer: "silence"},
		dunlin.Input{Kind: dunlin.InputTelemetry, Flags: dunlin.FlagSkewed, Format: dunlin.FormatJSON, Received: t0,
			Records: []dunlin.Record{
				{Metric: "temperature", Unit: "Cel", Time: t0.Add(-3600e9), Kind: dunlin.Number, Num: -0.1},
				{Metric: "note", Time: t0, Kind: dunlin.Text, Str: "déjà vu"},
				{Metric: "raw", Time: t0, Kind: dunlin.Data, Str: "\x00\xff"},
				{Metric: "odd", Time: t0, Kind: dunlin.Number, Num: math.Copysign(0, -1)},
				{Metric: "pi", Time: t0, Kind: dunlin.Number, Num: math.Pi},
			}})
	c.Stages = []dunlin.StageResult{
		{Stage: 0, Hash: dunlin.ModuleHash{1, 2, 3}, State: []byte("state"), StateSet: true,
			Records: []dunlin.Record{{Metric: "temperature/mean", Unit: "Cel", Time: t0, Kind: dunlin.Number, Num: 5.25}}},
		{Stage: 1, Hash: dunlin.ModuleHash{4}, Failure: "out of fuel"},
		{Stage: 7, Hash: dunlin.ModuleHash{1, 2, 3}, State: []byte{}, StateSet: true},
	}
	c.Alerts = []dunlin.Alert{{Tenant: "default", Device: "fridge-7", Domain: "cold-chain", Rule: "too-warm", Key: "door",
		Severity: dunlin.Major, State: dunlin.AlertRaised, Text: "5.2 °C", Value: new(5.25), RaisedAt: t0, RaisedSeq: 41,
		At: t0.Add(1), Seq: 42, ClearedAt: t0.Add(2000)}}
	c.Timers = []dunlin.TimerSet{{Name: "silence", Due: t0.Add(600e9), Was: t0}, {Name: "other"}}
	return &dunlin.Entry{Shard: 63, Term: 1 << 40, At: t0, Changes: []dunlin.Change{c, fridgeChange("fridge-8", 1)},
		Puts: []dunlin.Put{
			{Table: dunlin.TableDevices, Key: "default/fridge-7", Value: []byte(`{"id":"fridge-7"}`)},
			{Table: dunlin.TableDomains, Key: "default/cold-chain"},
			{Table: dunlin.TableDomains, Key: "default/empty", Value: []byte{}},
		}}
}

// fullEffects has one of everything that came with version 2.
func fullEffects() *dunlin.Entry {
	e := fullEntry()
	c := &e.Changes[0]
	c.Inputs = append(c.Inputs,
		dunlin.Input{Kind: dunlin.InputResult, Format: dunlin.FormatText, MessageID: 11, Received: t0, Timer: "40-1", Payload: []byte("done")},
		dunlin.Input{Kind: dunlin.InputResult, Flags: dunlin.FlagTimedOut, Received: t0, Timer: "40-2"},
		dunlin.Input{Kind: dunlin.InputLifecycle, Format: dunlin.FormatJSON, Received: t0, Payload: []byte(`{"event":"changed"}`)})
	c.Stages[0].Made = dunlin.Made{Module: 0x01020304, Config: 0xfffefdfc}
	c.Stages[0].Refused = []dunlin.InputError{{Input: 1, Reason: "bad payload"}, {Input: 3, Reason: "bad payload"}}
	c.Stages[2].Made = c.Stages[0].Made
	c.Commands = []dunlin.Command{
		{ID: "42-0", Name: "reboot", At: t0, Deadline: t0.Add(60e9)},
		{ID: "42-1", Name: "set.point", Payload: []byte{0xa1, 1, 2}, Format: dunlin.FormatCBOR, At: t0, Deadline: t0.Add(86400e9)}}
	c.Publish = []dunlin.Publication{{Topic: "door/opened", Payload: []byte("{}"), Format: dunlin.FormatJSON}, {Topic: "door/opened"}}
	e.Changes[1].Stages = []dunlin.StageResult{{State: []byte{1}, StateSet: true, Made: dunlin.Made{Module: 1}}}
	e.Puts = append(e.Puts, dunlin.Put{Table: dunlin.TableDeadLetters, Key: "default/fridge-7/1/42"})
	return e
}

// fullStateEffects has one of everything that came with version 2 of a state.
func fullStateEffects() *dunlin.DeviceState {
	s := fullState()
	d := dunlin.DeltaOf(&fullEffects().Changes[0])
	s.Plugins, s.Commands = d.Plugins, d.Commands
	return s
}

func fullState() *dunlin.DeviceState {
	e := fullEntry()
	s := dunlin.DeltaOf(&e.Changes[0])
	s.Alerts = append(s.Alerts, dunlin.Alert{Tenant: "other", Device: "x", Rule: "gone", State: dunlin.AlertCleared})
	return &s
}

func TestGolden(t *testing.T) {
	for name, b := range map[string][]byte{
		"entry_v1_one":   entry.AppendAs(nil, oneReading(), 1),
		"entry_v1_full":  entry.AppendAs(nil, fullEntry(), 1),
		"entry_v1_empty": entry.AppendAs(nil, &dunlin.Entry{}, 1),
		"entry_v2_one":   entry.AppendAs(nil, oneReading(), 2),
		"entry_v2_full":  entry.AppendAs(nil, fullEffects(), 2),
		"entry_v2_empty": entry.AppendAs(nil, &dunlin.Entry{}, 2),
		"state_v1_full":  entry.AppendState(nil, fullState()),
		"state_v1_empty": entry.AppendState(nil, &dunlin.DeviceState{}),
		"state_v2_full":  entry.AppendState(nil, fullStateEffects()),
	} {
		path := filepath.Join("testdata", name+".hex")
		got := hex.Dump(b)
		if *rewrite {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s: the format changed; got\n%swant\n%s", name, got, want)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	for _, e := range []*dunlin.Entry{{}, oneReading(), fullEntry(), fullEffects()} {
		b := entry.Append([]byte("prefix"), e)
		got, err := entry.Decode(b[len("prefix"):])
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, e) {
			t.Errorf("got  %+v\nwant %+v", got, e)
		}
	}
	for _, s := range []*dunlin.DeviceState{{}, fullState(), fullStateEffects()} {
		got, err := entry.DecodeState(entry.AppendState(nil, s))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, s) {
			t.Errorf("got  %+v\nwant %+v", got, s)
		}
	}
}

// The archive of the log may cost 40 bytes a reading; half of that before compression leaves room for plugin state.
func TestSizeOfOneReading(t *testing.T) {
	e := &dunlin.Entry{Shard: 7, Term: 3, At: t0}
	for i := range 64 {
		c := fridgeChange(fmt.Sprintf("fridge-%04d", i), uint64(1000+i))
		c.Inputs[0].MessageID = 0
		e.Changes = append(e.Changes, c)
	}
	if got := len(entry.Append(nil, e)) / 64; got > 31 {
		t.Errorf("a four-metric reading takes %d bytes of an entry of 64, want at most 31", got)
	}
}

// Every cut of good bytes is an error that says where, and so is every byte too many.
func TestDecodeRefusesBrokenBytes(t *testing.T) {
	b := entry.Append(nil, fullEffects())
	s := entry.AppendState(nil, fullStateEffects())
	for i := range b {
		if _, err := entry.Decode(b[:i]); !errors.Is(err, dunlin.ErrInvalid) {
			t.Fatalf("Decode of the first %d of %d bytes: %v", i, len(b), err)
		}
	}
	for i := range s {
		if _, err := entry.DecodeState(s[:i]); !errors.Is(err, dunlin.ErrInvalid) {
			t.Fatalf("DecodeState of the first %d of %d bytes: %v", i, len(s), err)
		}
	}
	if _, err := entry.Decode(append(b, 0)); !errors.Is(err, dunlin.ErrInvalid) {
		t.Errorf("Decode with a byte too many: %v", err)
	}
	if _, err := entry.DecodeState(append(s, 0)); !errors.Is(err, dunlin.ErrInvalid) {
		t.Errorf("DecodeState with a byte too many: %v", err)
	}
}

func TestDecodeRefusesOtherVersions(t *testing.T) {
	b := entry.Append(nil, oneReading())
	b[0] = 9
	_, err := entry.Decode(b)
	if !errors.Is(err, dunlin.ErrInvalid) || !strings.Contains(err.Error(), "version 9") {
		t.Errorf("Decode of version 9: %v", err)
	}
	_, err = entry.DecodeState([]byte{0, 0})
	if !errors.Is(err, dunlin.ErrInvalid) || !strings.Contains(err.Error(), "version 0") {
		t.Errorf("DecodeState of version 0: %v", err)
	}
}

// A few bytes that claim millions of elements are refused without making room for them.
func TestDecodeAllocatesByBytesNotByClaims(t *testing.T) {
	huge := []byte{0xff, 0xff, 0x7f} // 2,097,151
	head := []byte{entry.BaseVersion, 1, 1, 0}
	pad := bytes.Repeat([]byte{0xff}, 3_000_000) // so that the claims are possible
	b := bytes.Join([][]byte{head, {0xa0, 0x8d, 6}, {0}, {0xa0, 0x8d, 6}, huge, {0xa0, 0x8d, 6}, {0xa0, 0x8d, 6}, pad}, nil)
	var before, after uint64
	before = allocated(t)
	if _, err := entry.Decode(b); err == nil {
		t.Error("no error")
	}
	after = allocated(t)
	if got := after - before; got > 20*uint64(len(b)) {
		t.Errorf("decoding %d bytes allocated %d", len(b), got)
	}
}
