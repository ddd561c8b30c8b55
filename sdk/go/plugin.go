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
// For each device with new inputs the runtime calls Migrate and Configured if there is reason to, Begin, then Readings, Raw,
// Timer, Result or Lifecycle for each input in order, then End. A handler that panics fails its device's inputs, with the
// panic's text as the reason; other devices don't notice.
type Plugin struct {
	// Configure reads the domain's configuration, once for each instance, before anything else. An error says what is
	// wrong with the configuration; so does a value of the wrong type, by itself.
	Configure func(cfg *Config) error
	// Migrate is called when the device's state was made by another version of the plugin; module is the first eight hex
	// digits of that version's hash, as a number. It reads the old layout (ctx.Load, ctx.State) and writes the new one (ctx.Save,
	// ctx.SetState), which is what Begin gets. Without it, or if it writes nothing, the state is taken as it is.
	Migrate func(ctx *Context, module uint32)
	// Configured is called when the device's state was made under another configuration, after Migrate; it can do the same.
	Configured func(ctx *Context)
	// Begin is the place to read the state: ctx.Load().
	Begin func(ctx *Context)
	// Readings takes the readings of one report, which may be none.
	Readings func(ctx *Context, rs []Reading)
	// Raw takes a payload that the runtime doesn't decode, with its content format (as in CoAP; 42 is octets).
	Raw func(ctx *Context, format uint16, payload []byte)
	// Timer is called when a timer that SetTimer armed is due.
	Timer func(ctx *Context, name string)
	// Result takes what became of a command: the device's answer, or that there was none until the deadline.
	Result func(ctx *Context, r Result)
	// Lifecycle is told when the device was registered or changed.
	Lifecycle func(ctx *Context, e Event)
	// End is the place to write the state: ctx.Save().
	End func(ctx *Context)
}

// Result is what became of a command to the device.
type Result struct {
	Command  string // the command's id, which contains the sequence number of the input that made it
	TimedOut bool   // nobody answered until the deadline
	Format   uint16 // content format, as in CoAP
	Payload  []byte // what the device says; the handler's until it returns
}

// Event is what happened to the device's registration. New events may come: look for those that you know.
type Event struct {
	Event  string // "registered", or "changed": domain or labels
	Domain string
	Was    string // the domain before, if it was another
	Labels map[string]string
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

// SeverityOf returns the severity of that name: info, warning, major, critical.
func SeverityOf(name string) (s Severity, ok bool) {
	switch name {
	case "info":
		return Info, true
	case "warning":
		return Warning, true
	case "major":
		return Major, true
	case "critical":
		return Critical, true
	}
	return 0, false
}

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

	// In the order and of the sizes that they have in a frame, see take.
	id    uint32 // of Metric
	unit  uint16
	Kind  Kind
	flags uint8

	at int32 // in its report
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
