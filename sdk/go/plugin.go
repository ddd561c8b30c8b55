// Package sdk is what a plugin's author writes against: handlers for a device's readings and timers, its state, and what
// to do about them: alerts, derived readings, timers.
//
// A plugin is a Go program without a main of its own, built with plain Go as a WebAssembly reactor:
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -o my-plugin.wasm .
//
//	package main
//
//	import sdk "github.com/dunlin-iot/dunlin/sdk/go"
//
//	func main() {}
//
//	var _ = sdk.Register(sdk.Plugin{Readings: func(ctx *sdk.Context, rs []sdk.Reading) {
//		for _, r := range rs {
//			if r.Metric == "temp" && r.Value > 8 {
//				ctx.Alert("too-warm", sdk.Major, "warmer than 8 °C", r.Value)
//			}
//		}
//	}})
//
// # What to rely on
//
// The runtime keeps a plugin's memory of a device: the state bytes, which come with the device's inputs and are committed
// with what the plugin made of them. Nothing else survives: an instance serves many devices and may be replaced between
// any two calls, so package variables may hold what Configure derived from the configuration and nothing about devices.
//
// Time is the device's: [Context.Now] and the clock that package time sees are the moment of the input, the same in a
// replay. There are no files, no network and no environment; random numbers repeat. Do not use encoding/json: it adds
// megabytes, and 75 µs to every reading.
//
// Memory that handlers get ([]Reading, payloads) is only theirs until they return; strings may be kept.
package sdk

// Plugin is a plugin's handlers; those that are nil are not called.
//
// For each device with new inputs the runtime calls Begin, then Readings, Raw or Timer for each input in order, then End.
// A handler that panics fails its device's inputs, with the panic's text as the reason; other devices don't notice.
type Plugin struct {
	// Configure reads the domain's configuration, once for each instance, before anything else. An error says what is
	// wrong with the configuration; so does a value of the wrong type, by itself.
	Configure func(cfg *Config) error
	// Begin is the place to read the state: ctx.Load().
	Begin func(ctx *Context)
	// Readings takes the readings of one report.
	Readings func(ctx *Context, rs []Reading)
	// Raw takes a payload that the runtime doesn't decode, with its content format (as in CoAP; 42 is octets).
	Raw func(ctx *Context, format uint16, payload []byte)
	// Timer is called when a timer that SetTimer armed is due.
	Timer func(ctx *Context, name string)
	// End is the place to write the state: ctx.Save().
	End func(ctx *Context)
}

// registered is the module's plugin. A module's exports are functions, so what they work on has to be a variable.
var registered *Guest

// Register makes p the module's plugin: call it once, when a package variable is initialised. It returns true.
func Register(p Plugin) bool {
	registered = NewGuest(p)
	return true
}

// Severity ranks alerts.
type Severity uint8

// The severities.
const (
	Info     Severity = 1
	Warning  Severity = 2
	Major    Severity = 3
	Critical Severity = 4
)

// Kind says what a reading's value is.
type Kind uint8

// The kinds of value.
const (
	Number  Kind = 1 // Value
	Boolean Kind = 2 // Value is 0 or 1
	Text    Kind = 3 // Context.Text
	Data    Kind = 4 // Context.Text has the bytes
)

// Reading is one value of one metric. Its unit, and the text of one that is no number, are asked for: Context.Unit,
// Context.Text.
type Reading struct {
	Metric string
	Time   Time    // when it was measured
	Value  float64 // of a Number; 0 or 1 of a Boolean
	Kind   Kind

	unit uint16
	id   uint32 // of Metric
	at   int32  // in its report
}

// Derived is a reading that a plugin makes.
type Derived struct {
	Metric string
	Unit   string // SenML unit, "" if none
	Time   Time   // 0: when the input at hand was received
	Kind   Kind   // 0: Number
	Value  float64
	Text   string // of a Text; the bytes of a Data
}

// Metric is a metric's name that a plugin looks out for; see Config.Metric.
type Metric struct {
	name string
	id   uint32 // 0: the runtime hasn't spoken of it yet
}

// Name returns the metric's name.
func (m *Metric) Name() string { return m.name }

// Is reports whether r.Metric is m's name. It compares numbers, not strings.
func (r *Reading) Is(m *Metric) bool { return r.id == m.id && m.id != 0 }
