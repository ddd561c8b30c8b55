package sdk_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/dunlin-iot/dunlin/plugins/abi"
	sdk "github.com/dunlin-iot/dunlin/sdk/go"
	"github.com/dunlin-iot/dunlin/sdk/vectors"
)

// devices returns a frame with one report of each device.
func devices(ids ...string) []byte {
	b := abi.AppendBatch(nil, 99, len(ids), len(ids))
	b = abi.AppendName(b, 1, "temp")
	for _, id := range ids {
		b = abi.AppendDevice(b, 7, id, []byte("old"))
		start := len(b)
		b = abi.BeginTelemetry(b, 5, 1, 0)
		b = abi.AppendReading(b, abi.Reading{Metric: 1, Kind: abi.ValueNumber, Time: 3, Value: 4})
		b = abi.EndTelemetry(b, start)
	}
	return b
}

// tell writes an answer down.
func tell(t *testing.T, out []byte) string {
	t.Helper()
	var b strings.Builder
	r := abi.NewReader(out)
	for {
		kind, flags, rec, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if rec == nil {
			return strings.TrimSpace(b.String())
		}
		switch kind {
		case abi.KindGroup:
			i, _ := abi.Group(rec)
			fmt.Fprintf(&b, "#%d ", i)
		case abi.KindState:
			fmt.Fprintf(&b, "state=%s ", abi.Body(rec))
		case abi.KindAlert:
			a, _ := abi.ReadAlert(flags, rec)
			fmt.Fprintf(&b, "alert=%d,%v,%d,%v,%s,%s,%s ", a.Input, a.Raise, a.Severity, a.Value, a.Rule, a.Key, a.Text)
		case abi.KindReading:
			d, _ := abi.ReadDerived(rec)
			fmt.Fprintf(&b, "reading=%d,%d,%v,%s,%s,%s ", d.Kind, d.Time, d.Value, d.Metric, d.Unit, d.Bytes)
		case abi.KindSet:
			due, name, _ := abi.ReadSet(rec)
			fmt.Fprintf(&b, "timer=%s@%d ", name, due)
		case abi.KindCommand, abi.KindPublish:
			fmt.Fprintf(&b, "%d=%q ", kind, abi.Body(rec))
		case abi.KindError:
			if flags&abi.FlagInput != 0 {
				i, why, _ := abi.ReadInputError(rec)
				fmt.Fprintf(&b, "refused=%d,%s ", i, why)
				continue
			}
			fallthrough
		default:
			fmt.Fprintf(&b, "%d=%s ", kind, abi.Body(rec))
		}
	}
}

// A handler that panics, wherever it does, fails its own device and nothing else.
func TestPanicFailsOneDevice(t *testing.T) {
	for _, where := range []string{"begin", "readings", "end"} {
		boom := func(ctx *sdk.Context, here string) {
			if ctx.Device() == "bad" && here == where {
				var list []int
				_ = list[len(here)]
			}
		}
		g := sdk.NewGuest(sdk.Plugin{
			Begin:    func(ctx *sdk.Context) { ctx.Log("begin " + ctx.Device()); boom(ctx, "begin") },
			Readings: func(ctx *sdk.Context, _ []sdk.Reading) { ctx.Emit("m", 1); boom(ctx, "readings") },
			End:      func(ctx *sdk.Context) { ctx.SetState([]byte("new")); boom(ctx, "end") },
		})
		out, failed := g.Process(devices("a", "bad", "b"))
		want := "#0 261=begin a reading=1,5,1,m,, state=new " +
			"#1 262=panic: runtime error: index out of range [" + fmt.Sprint(len(where)) + "] with length 0 " +
			"#2 261=begin b reading=1,5,1,m,, state=new"
		if got := tell(t, out); failed || got != want {
			t.Errorf("in %s:\ngot  %s\nwant %s", where, got, want)
		}
	}
}

// Everything that a handler can say, and nothing of it after Fail.
func TestAnswer(t *testing.T) {
	g := sdk.NewGuest(sdk.Plugin{
		Readings: func(ctx *sdk.Context, rs []sdk.Reading) {
			ctx.Alert("r", sdk.Major, "text", 1.5)
			ctx.ClearKey("r", "k")
			ctx.EmitDerived(sdk.Derived{Metric: "n", Text: "x", Kind: sdk.Text, Time: rs[0].Time})
			ctx.SetTimer("t", ctx.Now().Add(1000))
			ctx.SetTimer("past", -5)
			ctx.CancelTimer("t")
			if ctx.Device() == "bad" {
				ctx.Fail("no such sensor")
				ctx.Alert("never", sdk.Info, "", 0)
			}
		},
	})
	out, _ := g.Process(devices("a", "bad"))
	want := "#0 alert=0,true,3,1.5,r,,text alert=0,false,0,NaN,r,k, reading=3,3,0,n,,x timer=t@100 timer=past@1 timer=t@0 " +
		"#1 262=no such sensor"
	if got := tell(t, out); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// Ids of names: defined, forgotten, defined anew; a Metric follows.
func TestNamesAreForgottenAndDefinedAnew(t *testing.T) {
	var metric *sdk.Metric
	var seen []string
	g := sdk.NewGuest(sdk.Plugin{
		Configure: func(cfg *sdk.Config) error { metric = cfg.Metric("metric", "temp"); return nil },
		Readings: func(_ *sdk.Context, rs []sdk.Reading) {
			for i := range rs {
				seen = append(seen, fmt.Sprint(rs[i].Metric, rs[i].Is(metric)))
			}
		},
	})
	g.Init(abi.AppendText(nil, abi.KindConfig, 0, "{}"))
	report := func(names string, ids ...uint32) {
		b := abi.AppendBatch(nil, 1, 1, 1)
		for i, n := range strings.Fields(names) {
			if n == "-" {
				b = abi.AppendForget(b)
			} else {
				b = abi.AppendName(b, uint32(i), n)
			}
		}
		b = abi.AppendDevice(b, 1, "d", nil)
		start := len(b)
		b = abi.BeginTelemetry(b, 1, len(ids), 0)
		for _, id := range ids {
			b = abi.AppendReading(b, abi.Reading{Metric: id, Kind: 1})
		}
		if _, failed := g.Process(abi.EndTelemetry(b, start)); failed {
			t.Fatal("failed")
		}
	}
	report("- door temp", 1, 2)
	report("", 2, 0, 77)
	report("- temp", 1, 2)
	if got, want := strings.Join(seen, " "), "doorfalse temptrue temptrue false false temptrue false"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestConfiguration(t *testing.T) {
	for _, c := range []struct {
		config string
		read   func(*sdk.Config) any
		want   string
	}{
		{` { "a" : 1.5e1 , "b":[1,{"c":[]}], "d":null} `, func(c *sdk.Config) any {
			return []any{c.Float("a", 0), c.Has("b"), c.Has("d"), c.Int("e", 7), c.Keys()}
		}, "[15 true false 7 [a b d]] <nil>"},
		{`{"s":"\u00e4\ud83d\ude00\n\"","t":["x","y"],"on":true,"d":"90s"}`, func(c *sdk.Config) any {
			return []any{c.String("s", ""), c.Strings("t"), c.Bool("on", false), c.Duration("d", 0)}
		}, "[ä😀\n\" [x y] true 1m30s] <nil>"},
		{`{"o":{"max":"8"}}`, func(c *sdk.Config) any { return c.Object("o").Float("max", 3) },
			"3 setting o.max must be a number, not \"8\""},
		{`{"n":1.5}`, func(c *sdk.Config) any { return c.Int("n", 2) }, "2 setting n must be a whole number, not 1.5"},
		{`{"n":"15 minutes"}`, func(c *sdk.Config) any { return c.Duration("n", 2) },
			`2ns setting n must be a time span as 90s, 15m or 24h, not "15 minutes"`},
		{`{"n":Infinity}`, nil, "not a JSON object: see byte 5"},
		{`{"n":1}x`, nil, "not a JSON object: see byte 7"},
		{`{"n":"` + "\n" + `"}`, nil, "not a JSON object"},
		{strings.Repeat(`{"a":`, 1000), nil, "not a JSON object"},
		{`"a"`, nil, "not a JSON object"},
	} {
		cfg, err := sdk.ParseConfig(c.config)
		if err != nil {
			if c.read != nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%.40s: %v, want %s", c.config, err, c.want)
			}
			continue
		}
		if c.read == nil {
			t.Errorf("%.40s: no error", c.config)
			continue
		}
		if got := fmt.Sprint(c.read(cfg), " ", cfg.Err()); got != c.want {
			t.Errorf("%s: got %s, want %s", c.config, got, c.want)
		}
	}
}

func TestInitAnswersWithWhatIsWrong(t *testing.T) {
	for config, want := range map[string]string{
		`{"max": 1}`:           "false 261=the plugin has no setting max: a typing error?",
		`{"limit": "x"}`:       "true setting limit must be a number, not \"x\"",
		`{"limit": 1}`:         "true too low",
		`{"limit": 2}`:         "true panic: boom",
		`{"limit": 3, "x": {}`: "true the configuration is not a JSON object: see byte 20",
	} {
		g := sdk.NewGuest(sdk.Plugin{Configure: func(cfg *sdk.Config) error {
			switch cfg.Float("limit", 3) {
			case 1:
				return errors.New("too low")
			case 2:
				panic("boom")
			}
			return nil
		}})
		out, failed := g.Init(abi.AppendText(nil, abi.KindConfig, 0, config))
		got := string(out)
		if !failed {
			got = tell(t, out)
		}
		if got = fmt.Sprint(failed, " ", got); got != want {
			t.Errorf("%s: got %s, want %s", config, got, want)
		}
	}
}

// FuzzProcess: whatever the frame, a guest answers or refuses it.
func FuzzProcess(f *testing.F) {
	f.Add(devices("a", "b"))
	list, err := vectors.Load(vectors.FS())
	if err != nil {
		f.Fatal(err)
	}
	for i := range list {
		for _, c := range list[i].Calls {
			f.Add([]byte(c.In))
		}
	}
	g := sdk.NewGuest(sdk.Plugin{
		Migrate: func(ctx *sdk.Context, module uint32) { ctx.SetState(append(ctx.State(), byte(module))) },
		Result:  func(ctx *sdk.Context, r sdk.Result) { ctx.Command("again", r.Format, r.Payload, 0) },
		Lifecycle: func(ctx *sdk.Context, e sdk.Event) {
			ctx.Publish("t", 0, []byte(e.Domain))
			ctx.FailInput(e.Event)
		},
		Begin:    func(ctx *sdk.Context) { s := ctx.Load(); s.Byte(); s.Uint(); s.Int(); _ = s.Text() },
		Readings: func(ctx *sdk.Context, rs []sdk.Reading) { ctx.Emit("n", float64(len(rs))) },
		Timer:    func(ctx *sdk.Context, name string) { ctx.SetTimer(name, 1) },
		Raw:      func(ctx *sdk.Context, _ uint16, p []byte) { ctx.Log(string(p)) },
		End:      func(ctx *sdk.Context) { ctx.Save().Uint(ctx.Seq()) },
	})
	f.Fuzz(func(t *testing.T, frame []byte) {
		if out, failed := g.Process(frame); !failed {
			if got := tell(t, out); strings.Contains(got, "262=panic: ") { // in the SDK: in WebAssembly nobody checks bounds there
				t.Fatal(got)
			}
		}
	})
}

// State reads back as it was written, and a shorter one reads as zeros.
func TestStateRoundTrip(t *testing.T) {
	var got string
	var cut int
	g := sdk.NewGuest(sdk.Plugin{
		Begin: func(ctx *sdk.Context) {
			r := ctx.Load()
			vs := make([]float32, 3)
			got = fmt.Sprint(r.Byte(), r.Bool(), r.Uint(), r.Int(), r.Time(), r.Float(), r.Float32(), r.Text(),
				r.Float32s(vs), vs, r.OK(), r.Empty())
		},
		End: func(ctx *sdk.Context) {
			w := ctx.Save()
			w.Byte(7)
			w.Bool(true)
			w.Uint(300)
			w.Int(-70)
			w.Time(1 << 50)
			w.Float(-0.1)
			w.Float32(2.5)
			w.Text("äb")
			w.Float32s([]float32{1, 2})
		},
	})
	out, _ := g.Process(devices("a"))
	r := abi.NewReader(out)
	r.Next()
	_, _, rec, _ := r.Next()
	state := append([]byte(nil), abi.Body(rec)...)
	for cut = range len(state) + 1 {
		g.Process(abi.AppendDevice(nil, 1, "a", state[:len(state)-cut]))
		switch {
		case cut == 0 && got != "7 true 300 -70 1125899906842624 -0.1 2.5äb2 [1 2 0] true true":
			t.Errorf("read back: %s", got)
		case cut == len(state) && got != "0 false 0 0 0 0 00 [0 0 0] false true":
			t.Errorf("of nothing: %s", got)
		}
	}
}
