// Command alarms is the plugin for the usual alarms, which comes with the binary: thresholds, rates of change, deviations from
// what is usual, absence of data and states. docs/alarms.md is its user's page.
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -o alarms.wasm ./sdk/go/builtin/alarms
//
// Each alarm of the configuration goes its way at each device:
//
//	        condition              held for "for"
//	idle ─────────────▶ pending ─────────────────▶ active ────────────▶ clearing ──▶ idle
//	  ▲  no longer          │                        ▲  ended              │ held for "clear_for"
//	  └─────────────────────┘                        └─────────────────────┘
//	                                                     not ended
package main

import (
	"strings"

	sdk "github.com/dunlin-iot/dunlin/sdk/go"
)

func main() {}

var _ = sdk.Register(newPlugin())

// timerPrefix stands before an alarm's name in its timer's: the timers of a device are those of all its domain's plugins.
const timerPrefix = "alarm:"

// plugin is the configuration, and the memory of the device whose turn it is.
type plugin struct {
	alarms []alarm
	heard  bool // some alarm is of absence
	mem    []memory
	buf    []byte // the state is written here
	strays []stray
	known  bool // the device has a state
}

func newPlugin() sdk.Plugin {
	p := &plugin{}
	return sdk.Plugin{
		Configure:  p.configure,
		Configured: p.configured,
		Begin:      p.begin,
		Readings:   p.readings,
		Raw:        p.raw,
		Timer:      p.timer,
		Lifecycle:  p.lifecycle,
		End:        p.end,
	}
}

func (p *plugin) begin(ctx *sdk.Context) { p.load(ctx.State()) }

func (p *plugin) end(ctx *sdk.Context) {
	if b := p.save(); len(b) > 1 || p.known {
		ctx.SetState(b)
	}
}

// configured drops what other alarms than today's have left in the state, and clears those that are still active: nobody else
// would. Timers of absence move to where they belong now.
func (p *plugin) configured(ctx *sdk.Context) {
	p.load(ctx.State())
	for _, s := range p.strays {
		ctx.Clear(s.name)
	}
	for i := range p.alarms {
		if a, m := &p.alarms[i], &p.mem[i]; m.armed {
			p.await(ctx, a, m)
		}
	}
	ctx.SetState(p.save())
}

func (p *plugin) readings(ctx *sdk.Context, rs []sdk.Reading) {
	received := ctx.Received()
	for i := range p.alarms {
		a, m := &p.alarms[i], &p.mem[i]
		if a.kind == absence && a.metric == nil {
			p.hear(ctx, a, m)
			continue
		}
		for j := range rs {
			if r := &rs[j]; r.Is(a.metric) {
				// A clock that is ahead would make all that comes later too old.
				p.reading(ctx, a, m, r, min(r.Time, received))
			}
		}
	}
}

func (p *plugin) raw(ctx *sdk.Context, _ uint16, _ []byte) {
	if !p.heard {
		return
	}
	for i := range p.alarms {
		if a := &p.alarms[i]; a.kind == absence && a.metric == nil {
			p.hear(ctx, a, &p.mem[i])
		}
	}
}

// lifecycle begins to wait for a device when it is registered: one that never sends is absent, too.
func (p *plugin) lifecycle(ctx *sdk.Context, _ sdk.Event) {
	if !p.heard {
		return
	}
	for i := range p.alarms {
		if a, m := &p.alarms[i], &p.mem[i]; a.kind == absence && !m.armed && m.phase == idle {
			m.last = ctx.Received()
			p.await(ctx, a, m)
		}
	}
}

func (p *plugin) timer(ctx *sdk.Context, name string) {
	name, ours := strings.CutPrefix(name, timerPrefix)
	if !ours {
		return
	}
	for i := range p.alarms {
		a, m := &p.alarms[i], &p.mem[i]
		switch {
		case a.name != name:
		case a.kind == absence:
			p.silence(ctx, a, m)
		default:
			p.held(ctx, a, m)
		}
	}
}
