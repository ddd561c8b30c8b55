// Command cold-chain is a plugin for refrigerated goods: it tells when a fridge is too warm, when its door stays open and
// when it is no longer heard of. It is an example of the Go SDK, and what `dunlin dev` runs.
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -o cold-chain.wasm ./sdk/go/examples/cold-chain
//
// Settings, all optional:
//
//	metric             "temp"   the temperature's metric
//	max                8        raise too-warm when the mean of the last samples readings is above this
//	clear_below        max − 1  clear it when the mean is below this
//	samples            5        1 to 8
//	door_metric        "door"   the door contact's metric; true or not 0 is open
//	door_open_minutes  3        raise door-open when the door is open for longer; 0 never
//	silent_minutes     15       raise silent when nothing was heard for so long; 0 never
package main

import (
	"errors"
	"strconv"
	"time"

	sdk "github.com/dunlin-iot/dunlin/sdk/go"
)

func main() {}

var _ = sdk.Register(newPlugin())

const samplesMax = 8

// The timers, by the rules that they serve.
const (
	timerSilent = "silent"
	timerDoor   = "door-open"
)

// coldChain is the configuration, and the memory of the device whose turn it is.
type coldChain struct {
	metric, doorMetric *sdk.Metric
	max, clearBelow    float64
	samples            int
	silentAfter        time.Duration
	openMax            time.Duration

	mem memory
}

func newPlugin() sdk.Plugin {
	c := &coldChain{}
	return sdk.Plugin{
		Configure: c.configure,
		Begin:     c.begin,
		Readings:  c.readings,
		Timer:     c.timer,
		End:       c.end,
	}
}

func (c *coldChain) begin(ctx *sdk.Context) { c.mem.load(ctx.Load()) }
func (c *coldChain) end(ctx *sdk.Context)   { c.mem.save(ctx.Save()) }

func (c *coldChain) configure(cfg *sdk.Config) error {
	minutes := func(key string, otherwise float64) time.Duration {
		return time.Duration(cfg.Float(key, otherwise) * float64(time.Minute))
	}
	c.metric = cfg.Metric("metric", "temp")
	c.max = cfg.Float("max", 8)
	c.clearBelow = cfg.Float("clear_below", c.max-1)
	c.samples = cfg.Int("samples", 5)
	c.doorMetric = cfg.Metric("door_metric", "door")
	c.openMax = minutes("door_open_minutes", 3)
	c.silentAfter = minutes("silent_minutes", 15)
	switch {
	case c.clearBelow > c.max:
		return errors.New("setting clear_below must not be above max")
	case c.samples < 1 || c.samples > samplesMax:
		return errors.New("setting samples must be 1 to " + strconv.Itoa(samplesMax))
	}
	return nil
}

// readings takes one report. Being heard of is only noted: the timer of silence is not moved, but looks at the note when
// it fires. Moving it would cost the store two rows for every report.
func (c *coldChain) readings(ctx *sdk.Context, rs []sdk.Reading) {
	m := &c.mem
	m.lastSeen = ctx.Received()
	if m.is(silent) {
		m.unset(silent)
		ctx.Clear("silent")
	}
	if c.silentAfter > 0 && !m.is(watched) {
		m.set(watched)
		ctx.SetTimer(timerSilent, m.lastSeen.Add(c.silentAfter))
	}
	for i := range rs {
		switch r := &rs[i]; {
		case r.Is(c.metric) && r.Kind == sdk.Number:
			c.temperature(ctx, r.Value)
		case r.Is(c.doorMetric):
			c.door(ctx, r.Value != 0)
		}
	}
}

func (c *coldChain) temperature(ctx *sdk.Context, v float64) {
	m := &c.mem
	m.push(float32(v), c.samples)
	if m.n < c.samples {
		return // too early to tell
	}
	mean := m.mean()
	switch {
	case !m.is(warm) && mean > c.max:
		m.set(warm)
		ctx.Alert("too-warm", sdk.Major, "mean of the last "+strconv.Itoa(c.samples)+" readings is "+
			celsius(mean)+", the limit "+celsius(c.max), mean)
	case m.is(warm) && mean < c.clearBelow:
		m.unset(warm)
		ctx.ClearWith("too-warm", "mean of the last "+strconv.Itoa(c.samples)+" readings is "+celsius(mean)+", below "+celsius(c.clearBelow), mean)
	}
}

func (c *coldChain) door(ctx *sdk.Context, open bool) {
	m := &c.mem
	if open == m.is(doorOpen) || c.openMax <= 0 {
		return
	}
	m.flags ^= doorOpen
	if open {
		m.openSince = ctx.Received()
		ctx.SetTimer(timerDoor, m.openSince.Add(c.openMax))
		return
	}
	ctx.CancelTimer(timerDoor)
	if m.is(doorTold) {
		m.unset(doorTold)
		ctx.Clear("door-open")
	}
}

func (c *coldChain) timer(ctx *sdk.Context, name string) {
	m := &c.mem
	now := ctx.Received()
	switch name {
	case timerSilent:
		due := m.lastSeen.Add(c.silentAfter)
		m.unset(watched)
		switch {
		case c.silentAfter <= 0:
		case due > now:
			m.set(watched)
			ctx.SetTimer(timerSilent, due)
		case !m.is(silent):
			m.set(silent)
			ctx.Alert("silent", sdk.Warning, "not heard of for "+minutes(c.silentAfter), sdk.NoValue())
		}
	case timerDoor:
		due := m.openSince.Add(c.openMax)
		switch {
		case !m.is(doorOpen) || m.is(doorTold) || c.openMax <= 0:
		case due > now:
			ctx.SetTimer(timerDoor, due)
		default:
			m.set(doorTold)
			ctx.Alert("door-open", sdk.Warning, "the door is open for "+minutes(c.openMax), sdk.NoValue())
		}
	}
}

func celsius(v float64) string { return strconv.FormatFloat(v, 'f', 1, 64) + " °C" }

func minutes(d time.Duration) string {
	return strconv.FormatFloat(d.Minutes(), 'g', 3, 64) + " minutes"
}
