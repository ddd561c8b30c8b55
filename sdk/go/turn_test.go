package sdk_test

import (
	"fmt"
	"testing"

	"github.com/dunlin-iot/dunlin/plugins/abi"
	sdk "github.com/dunlin-iot/dunlin/sdk/go"
)

// turn returns a frame with one device that has a state, and the records behind it.
func turn(state string, records ...[]byte) []byte {
	b := abi.AppendBatch(nil, 99, 1, len(records))
	b = abi.AppendDevice(b, 7, "d", []byte(state))
	for _, r := range records {
		b = append(b, r...)
	}
	return b
}

func raw(payload string) []byte { return abi.AppendRaw(nil, 5, 42, 0, []byte(payload)) }

// A state of another version goes through Migrate and Configured, in this order, before Begin sees it; what comes out is
// written even if nobody writes a state later, and is not if it is what came.
func TestStateIsMigratedBeforeBegin(t *testing.T) {
	var seen []string
	g := sdk.NewGuest(sdk.Plugin{
		Migrate: func(ctx *sdk.Context, module uint32) {
			ctx.SetState(fmt.Appendf(nil, "%s+%x", ctx.State(), module))
		},
		Configured: func(ctx *sdk.Context) {
			if string(ctx.State()) != "keep" {
				ctx.SetState(append(ctx.State(), '!'))
			}
		},
		Begin: func(ctx *sdk.Context) { seen = append(seen, string(ctx.State())) },
		Raw:   func(ctx *sdk.Context, _ uint16, _ []byte) { ctx.Log("raw") },
	})
	migrate, configured, name := abi.AppendMigrate(nil, 0xcafe), abi.AppendConfigured(nil), abi.AppendName(nil, 1, "late")
	for _, c := range []struct {
		frame []byte
		seen  string
		want  string
	}{
		{turn("old", raw("")), "old", "#0 261=raw"},
		{turn("old", migrate, name, configured, raw("")), "old+cafe!", "#0 261=raw state=old+cafe!"},
		{turn("old", configured), "old!", "#0 state=old!"},
		{turn("keep", configured, raw("")), "keep", "#0 261=raw"},
		{turn("", migrate), "+cafe", "#0 state=+cafe"},
		{append(turn("a", migrate), turn("b")...), "b", "#0 state=a+cafe"},
	} {
		out, failed := g.Process(c.frame)
		if got := tell(t, out); failed || got != c.want || seen[len(seen)-1] != c.seen {
			t.Errorf("got %s after %s, want %s after %s", got, seen[len(seen)-1], c.want, c.seen)
		}
	}
}

// An input that is refused alone takes with it what its handler said, before and after, and nothing else.
func TestRefusedInputTakesOnlyItsOwn(t *testing.T) {
	g := sdk.NewGuest(sdk.Plugin{
		Begin: func(ctx *sdk.Context) {
			if string(ctx.State()) == "bad" {
				ctx.FailInput("at Begin")
			}
		},
		Raw: func(ctx *sdk.Context, _ uint16, p []byte) {
			ctx.Emit("m", float64(len(p)))
			if p[0] == 'x' {
				ctx.FailInput("no " + string(p))
				ctx.FailInput("again")
				ctx.Command("c", 0, nil, 0)
			}
			ctx.SetTimer(string(p), 1)
		},
		End: func(ctx *sdk.Context) { ctx.Publish("end", 50, []byte("{}")) },
	})
	for _, c := range []struct {
		frame []byte
		want  string
	}{
		{turn("", raw("x")), "#0 refused=0,no x 264=\"2\\x00\\x03\\x00\\x02\\x00\\x00\\x00end{}\""},
		{turn("", raw("a"), raw("x2"), raw("b")), "#0 reading=1,5,1,m,, timer=a@1 refused=1,no x2 reading=1,5,1,m,, timer=b@1 " +
			"264=\"2\\x00\\x03\\x00\\x02\\x00\\x00\\x00end{}\""},
		{turn("bad", raw("a")), "#0 262=at Begin"},
	} {
		out, failed := g.Process(c.frame)
		if got := tell(t, out); failed || got != c.want {
			t.Errorf("\ngot  %s\nwant %s", got, c.want)
		}
	}
}

// What became of commands, and of the device's registration.
func TestResultsAndLifecycle(t *testing.T) {
	var seen []string
	g := sdk.NewGuest(sdk.Plugin{
		Result: func(ctx *sdk.Context, r sdk.Result) {
			seen = append(seen, fmt.Sprintf("%s %v %d %s at %d", r.Command, r.TimedOut, r.Format, r.Payload, ctx.Received()))
		},
		Lifecycle: func(ctx *sdk.Context, e sdk.Event) {
			seen = append(seen, fmt.Sprintf("%s %s %s %s at %d seq %d", e.Event, e.Domain, e.Was, e.Labels, ctx.Received(), ctx.Seq()))
		},
	})
	_, failed := g.Process(turn("",
		abi.AppendCommandResult(nil, 5, 50, false, "7-0", []byte("{}")),
		abi.AppendCommandResult(nil, 6, 0, true, "7-1", nil),
		abi.AppendLifecycle(nil, 8, []byte(`{"event":"changed","domain":"cold","was":"warm","labels":{"a":"ä"},"younger":[]}`)),
		abi.AppendLifecycle(nil, 9, []byte(`no JSON`))))
	want := `[7-0 false 50 {} at 5 7-1 true 0  at 6 changed cold warm map[a:ä] at 8 seq 9    map[] at 9 seq 10]`
	if got := fmt.Sprint(seen); failed || got != want {
		t.Errorf("\ngot  %s\nwant %s", got, want)
	}
}

// States of all sizes are written as they are, padded with zeros, and only if they differ.
func TestStateOfAnySize(t *testing.T) {
	var next []byte
	g := sdk.NewGuest(sdk.Plugin{End: func(ctx *sdk.Context) { ctx.SetState(next) }})
	state := make([]byte, 70<<10)
	for i := range state {
		state[i] = byte(i%250) + 1
	}
	for _, n := range []int{0, 1, 7, 8, 9, 31, 32, 33, 39, 40, 41, 47, 48, 49, 64, 100, 64 << 10, 70 << 10} {
		next = state[:n]
		want := abi.AppendText(abi.AppendGroup(nil, 0), abi.KindState, 0, next)
		if out, _ := g.Process(turn("something else")); string(out) != string(want) {
			t.Errorf("%d bytes: got %x\nwant %x", n, out, want)
		}
		if out, _ := g.Process(turn(string(next))); len(out) != 0 {
			t.Errorf("%d bytes: the same again is written: %d bytes", n, len(out))
		}
		if n == 0 {
			continue
		}
		other := append([]byte(nil), next...)
		other[n-1]++
		if out, _ := g.Process(turn(string(other))); string(out) != string(want) {
			t.Errorf("%d bytes: one in the last byte is not seen", n)
		}
	}
}
