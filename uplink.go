package dunlin

import "math"

// ContentFormat is a CoAP content format number (RFC 7252 §12.3 registry); the other protocols map their media types to it.
type ContentFormat uint16

// The formats that the doors decode.
const (
	FormatText      ContentFormat = 0   // text/plain: one number
	FormatOctets    ContentFormat = 42  // application/octet-stream: kept as is, for a decoder plugin
	FormatJSON      ContentFormat = 50  // application/json: an object of metric → number, bool or string
	FormatCBOR      ContentFormat = 60  // application/cbor: a map of the same shape
	FormatSenMLJSON ContentFormat = 110 // application/senml+json, RFC 8428
	FormatSenMLCBOR ContentFormat = 112 // application/senml+cbor, RFC 8428
)

// ValueKind says which field of a Record holds its value.
type ValueKind uint8

// The kinds of value (RFC 8428 §4.2: v, vb, vs, vd). Their numbers are part of the entry format.
const (
	Number  ValueKind = 1 // Num
	Boolean ValueKind = 2 // Num is 0 or 1
	Text    ValueKind = 3 // Str
	Data    ValueKind = 4 // Str holds the bytes
)

// Record is one value of one metric at one time: a resolved SenML record, or a derived one from a plugin.
// A Record of Kind Number or Boolean with its device is a reading.
type Record struct {
	Metric string // valid by ValidateMetric; interned by the decoder
	Unit   string // SenML unit, "" if none
	Time   Time   // resolved; never 0 once an uplink was accepted
	Num    float64
	Str    string
	Kind   ValueKind
}

// Same reports equality with NaNs compared by bits.
func (r Record) Same(o Record) bool {
	a, b := math.Float64bits(r.Num), math.Float64bits(o.Num)
	r.Num, o.Num = 0, 0
	return a == b && r == o
}

// InputKind says what woke a device.
type InputKind uint8

// The kinds of input. Their numbers are part of the entry format and of the plugin ABI.
const (
	InputTelemetry InputKind = 1 // Records
	InputRaw       InputKind = 2 // Payload, for a decoder plugin
	InputTimer     InputKind = 3 // Timer
	InputResult    InputKind = 4 // a command's answer: Timer is the command's id, Payload what the device says; see FlagTimedOut
	InputLifecycle InputKind = 5 // Payload is a LifecycleEvent as JSON
)

// InputFlags qualify an input.
type InputFlags uint8

// Flags of an input. Their numbers are part of the entry format.
const (
	// FlagSkewed marks an uplink with a record time further from Received than its domain allows: kept, but told.
	FlagSkewed InputFlags = 1 << iota
	// FlagMayRepeat marks an uplink that its protocol may have sent before (CoAP retransmission, MQTT DUP, HTTP
	// Idempotency-Key): only such an uplink is looked up in the device's dedupe window.
	FlagMayRepeat
	// FlagExchange marks an uplink whose MessageID names a message only within SeenAge, because its protocol uses ids again
	// (CoAP, RFC 7252 §4.4): an older message of the same id in the dedupe window is another one.
	FlagExchange
	// FlagForwarded marks an uplink that another node took from its sender. It may come more than once, because a call between
	// nodes whose answer is lost is made again: an uplink of the same MessageID and Received is this one. It never gets into
	// an entry.
	FlagForwarded
	// FlagTimedOut marks an InputResult that is no answer: the command's deadline has passed without one.
	FlagTimedOut
)

// Input is one thing that a device's turn works off; it goes into the entry as it is.
type Input struct {
	Kind      InputKind
	Flags     InputFlags
	Format    ContentFormat // of the payload as it came
	MessageID uint64        // identifies the message for the dedupe window; 0: none. See Uplink.
	Received  Time          // the gateway's clock; for a timer its due time
	Sender    string        // who sent it, if not the device itself
	Records   []Record      // InputTelemetry: decoded by the gateway
	Payload   []byte        // InputRaw: as it came
	Timer     string        // InputTimer: the timer's name
}

// Outside reports whether the input came from outside: not a timer's, a deadline's, or what happened to the registration.
func (in *Input) Outside() bool {
	switch in.Kind {
	case InputTimer, InputLifecycle:
		return false
	case InputResult:
		return in.Flags&FlagTimedOut == 0
	}
	return true
}

// Uplink is what a device sends. The gateway builds it, hands it to an Ingestor and must not touch it, its records or
// its payload again until Waiter.Done has been called for it; the receiver may keep Records and Payload for ever.
//
// MessageID is a 64-bit hash that is equal for a retransmission of the same message and unlike otherwise. CoAP: source
// endpoint, message id, token, payload. MQTT: client id, packet id, payload. HTTP: the Idempotency-Key.
type Uplink struct {
	DeviceKey           // whose data it is
	Sender    Principal // who was authenticated; may speak for DeviceKey (checked by the gateway with Principal.MayWrite)
	Input

	Waiter Waiter // told the outcome
	Tag    uint64 // the waiter's own: packet id, slot, …
	Next   *Uplink
}

// Waiter is told what became of an uplink: exactly once, possibly before Ingest returns, from any goroutine, and without
// being allowed to block (other devices' answers wait behind it).
type Waiter interface {
	Done(u *Uplink, r Receipt)
}

// Receipt is the answer to an uplink.
type Receipt struct {
	Err       error  // nil: committed by a majority and applied
	Seq       uint64 // the device's sequence number of this uplink; counts from 1
	Duplicate bool   // the message was committed before; Seq is 0 if it is no longer known
	Created   bool   // the device registered itself with this uplink
	// RetryAfterSeconds accompanies ErrOverloaded and ErrUnavailable; at least 1.
	RetryAfterSeconds int
}

// PrincipalKind says what sort of sender was authenticated.
type PrincipalKind uint8

// The kinds of principal.
const (
	PrincipalNone        PrincipalKind = iota // nobody: may do nothing
	PrincipalDevice                           // itself only
	PrincipalGateway                          // speaks for the devices of its domain
	PrincipalApplication                      // reads its tenant
	PrincipalOperator                         // everything in its tenant
	PrincipalOpen                             // anyone, on a node that runs open on loopback: everything
)

// Principal is an authenticated sender.
type Principal struct {
	Kind   PrincipalKind
	Tenant Tenant
	ID     string   // device id, gateway id, token name
	Domain DomainID // of devices and gateways, if the credential names one
}

// MayWrite reports whether p may send uplinks as device d of its tenant. Whether a gateway's device is of the gateway's
// domain is checked by the device's shard, which knows.
func (p Principal) MayWrite(d DeviceKey) bool {
	switch p.Kind {
	case PrincipalOpen:
		return true
	case PrincipalDevice:
		return p.Tenant == d.Tenant && p.ID == string(d.Device)
	case PrincipalGateway, PrincipalOperator:
		return p.Tenant == d.Tenant
	}
	return false
}

// MayRead reports whether p may read device d of its tenant.
func (p Principal) MayRead(d DeviceKey) bool {
	return p.Kind == PrincipalApplication && p.Tenant == d.Tenant || p.MayWrite(d)
}

// MayReadAll reports whether p may read every device of its tenant.
func (p Principal) MayReadAll() bool {
	return p.Kind == PrincipalApplication || p.MayAdmin()
}

// MayAdmin reports whether p may change domains, devices, credentials and plugins of its tenant.
func (p Principal) MayAdmin() bool { return p.Kind == PrincipalOperator || p.Kind == PrincipalOpen }
