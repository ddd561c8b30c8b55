package dunlin

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
)

// ModuleHash is the SHA-256 of a .wasm as it was uploaded.
type ModuleHash [32]byte

func (h ModuleHash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText renders lower-case hex.
func (h ModuleHash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText parses 64 hex digits.
func (h *ModuleHash) UnmarshalText(b []byte) error {
	if n, err := hex.Decode(h[:], b); err != nil || n != len(h) || len(b) != 64 {
		return fmt.Errorf("%w: module hash %q is not 64 hex digits", ErrInvalid, b)
	}
	return nil
}

// Severity ranks alerts. The numbers are part of the entry format and of the plugin ABI.
type Severity uint8

// The severities.
const (
	Info     Severity = 1
	Warning  Severity = 2
	Major    Severity = 3
	Critical Severity = 4
)

var severityNames = [...]string{"", "info", "warning", "major", "critical"}

func (s Severity) String() string {
	if int(s) < len(severityNames) {
		return severityNames[s]
	}
	return fmt.Sprintf("severity(%d)", uint8(s))
}

// MarshalText renders the name.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText parses a name.
func (s *Severity) UnmarshalText(b []byte) error {
	for i, n := range severityNames {
		if i > 0 && n == string(b) {
			*s = Severity(i)
			return nil
		}
	}
	return fmt.Errorf("%w: severity %q is none of info, warning, major, critical", ErrInvalid, b)
}

// AlertState is where an alert is in its life. The numbers are part of the entry format.
type AlertState uint8

// The states of an alert.
const (
	AlertRaised       AlertState = 1
	AlertAcknowledged AlertState = 2
	AlertShelved      AlertState = 3
	AlertCleared      AlertState = 4
)

var alertStateNames = [...]string{"", "raised", "acknowledged", "shelved", "cleared"}

func (s AlertState) String() string {
	if int(s) < len(alertStateNames) {
		return alertStateNames[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// MarshalText renders the name.
func (s AlertState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText parses a name.
func (s *AlertState) UnmarshalText(b []byte) error {
	for i, n := range alertStateNames {
		if i > 0 && n == string(b) {
			*s = AlertState(i)
			return nil
		}
	}
	return fmt.Errorf("%w: alert state %q is none of raised, acknowledged, shelved, cleared", ErrInvalid, b)
}

// Alert is one occurrence of a rule's condition at a device. (Device, Rule, Key) names the condition; RaisedSeq tells its
// occurrences apart. In a Change it is a transition: the alert as it is after it.
type Alert struct {
	Tenant    Tenant     `json:"tenant"`
	Device    DeviceID   `json:"device"`
	Domain    DomainID   `json:"domain"`
	Rule      string     `json:"rule"`
	Key       string     `json:"key,omitempty"`
	Severity  Severity   `json:"severity"`
	State     AlertState `json:"state"`
	Text      string     `json:"text,omitempty"`
	Value     *float64   `json:"value,omitempty"`
	RaisedAt  Time       `json:"raised_at"`           // the input's Received
	RaisedSeq uint64     `json:"raised_seq"`          // seq of the uplink that raised it
	At        Time       `json:"at"`                  // of the last transition
	Seq       uint64     `json:"seq"`                 // seq of the input that did the last transition
	ClearedAt Time       `json:"cleared_at,omitzero"` // 0 while active
}

// ID names one occurrence: "device/rule/key/raised-seq" with an empty key left out.
func (a *Alert) ID() string {
	if a.Key == "" {
		return fmt.Sprintf("%s/%s/%d", a.Device, a.Rule, a.RaisedSeq)
	}
	return fmt.Sprintf("%s/%s/%s/%d", a.Device, a.Rule, a.Key, a.RaisedSeq)
}

// AlertSignal is what a plugin says about a condition; the device's machine makes transitions of it: a raise of an active
// alert is nothing unless its severity is higher, a clear of an inactive one is nothing.
type AlertSignal struct {
	Input    int // index of the input in the turn that caused it
	Raise    bool
	Update   bool // not a raise: text, value and severity of an alert that is active; nothing if it isn't
	Severity Severity
	Rule     string
	Key      string
	Text     string
	Value    *float64
}

// TimerSet arms (Due > 0) or cancels (Due == 0) a device's named timer. A timer fires once, as an InputTimer.
type TimerSet struct {
	Name string
	Due  Time
	Was  Time // in a Change: the due time that this replaces, 0 if none; the machine fills it
}

// Outcome is what one plugin made of one device's turn.
type Outcome struct {
	State    []byte // the device's new state for this plugin; kept as before if nil; emptied if empty and not nil
	Records  []Record
	Signals  []AlertSignal
	Timers   []TimerSet
	Commands []Command     // ID and At are the machine's to fill in
	Publish  []Publication // for applications
	Refused  []InputError  // inputs that the plugin refused alone; they are dead-lettered
	Logs     []string      // for the node's log, not committed
	Failure  string        // not "": the plugin failed on this turn (trap, fuel, limit); all else is empty, inputs are dead-lettered
	FuelUsed uint64
}

// Work is one device's part of a plugin call: in, its state and inputs; out, its Outcome.
type Work struct {
	DeviceKey
	Seq     uint64 // seq of Inputs[0]
	State   []byte
	Made    Made // of State
	Inputs  []Input
	Outcome Outcome
}

// Made says what made a plugin's state: the first four bytes of the module's hash and of the SHA-256 of its configuration,
// big-endian. Zero: nothing, or a build that did not note it.
type Made struct{ Module, Config uint32 }

// Stage is one plugin in a domain's pipeline, resolved to a module, or the pipeline's rules.
type Stage struct {
	Plugin string          // the stage's name
	Hash   ModuleHash      // of the module, or of Rules
	Config json.RawMessage // the domain's configuration for this plugin, a JSON object
	Rules  json.RawMessage // not nil: rules run, no module
	Made   Made            // what the states that this stage makes are marked with
	Sees   []int           // indexes of the stages whose derived readings it sees; nil: all before it
	Share  int             // Domain.PluginShare; 0: the default
	Name   string          // the plugin's name; "" for rules
	Trial  *StageTrial     // a candidate that runs beside it
}

// StageTrial is a trial as a stage carries it.
type StageTrial struct {
	Trial
	Made Made
}

// StageResult is a Stage's part of a Change.
type StageResult struct {
	Stage    uint8 // index in the domain's pipeline
	Hash     ModuleHash
	State    []byte // as in Outcome
	StateSet bool
	Records  []Record // derived readings
	Failure  string
	Refused  []InputError // inputs refused alone
	Made     Made         // of State, if StateSet
}

// Change is what one entry does to one device: its inputs and what came of them. Version is the device's sequence number
// after it; the i-th of n inputs has Version−n+1+i.
type Change struct {
	DeviceKey
	Domain   DomainID
	Version  uint64
	Created  bool // the device registers itself with this change
	Inputs   []Input
	Stages   []StageResult
	Alerts   []Alert // transitions, complete
	Timers   []TimerSet
	Commands []Command
	Publish  []Publication
}

// Seq returns the sequence number of the i-th input.
func (c *Change) Seq(i int) uint64 { return c.Version - uint64(len(c.Inputs)) + 1 + uint64(i) }

// Entry is what a shard's owner proposes: the turns of one batch, or changes of the registry, with all time and
// randomness in it. Package entry has its bytes. Entries and all they point to are immutable once proposed.
type Entry struct {
	Shard   ShardID
	Term    uint64 // the owner's; an entry committed in another term has no effect
	At      Time   // the owner's clock
	Changes []Change
	Puts    []Put
}

// Put writes (or, with a nil Value, deletes) one row of the registry: a JSON document under a table and a key.
// Device and session rows live in the shard of their id, all others in MetaShard. The owner has checked revisions before it proposes.
type Put struct {
	Table string // TableDevices, TableDomains, …
	Key   string // "tenant/name"
	Value []byte
}

// The registry's tables. Their names are part of the key format.
const (
	TableDevices     = "devices"
	TableDomains     = "domains"
	TablePlugins     = "plugins"
	TableCredentials = "credentials"
	TableMembers     = "members"   // by id: a wiped node has two rows for a while; the controller's
	TablePlacement   = "placement" // by shard; the controller's
	TableCluster     = "cluster"   // what holds for the whole cluster; the controller's
	TableSessions    = "sessions"  // MQTT sessions; in the shard of the client id
	// TableDeadLetters has no rows of its own: a Put without a value, with DeadLetter.Key as its key, in the device's shard,
	// deletes that letter. A Put with a value has no effect.
	TableDeadLetters = "deadletters"
)

// DeadLetter is an input that a plugin failed on or refused. The reading itself is kept; only the plugin's part is missing.
type DeadLetter struct {
	DeviceKey
	Domain DomainID
	Hash   ModuleHash
	Stage  uint8
	Seq    uint64
	At     Time
	Reason string
	Input  Input
}

// Duration is a time.Duration that reads and writes as "90s", "24h".
type Duration time.Duration

// MarshalText renders as time.Duration does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText parses as time.ParseDuration does.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%w: duration %q: write it as 90s, 15m or 24h", ErrInvalid, b)
	}
	*d = Duration(v)
	return nil
}
