package dunlin

import (
	"context"
	"encoding/json"
)

// Backtest asks what a candidate would have done with recorded inputs. It has no effects. The candidate takes the place of
// one stage of the domain's pipeline: what the stages before it derived is taken from the recording, and those behind it
// are not looked at.
type Backtest struct {
	Tenant Tenant   `json:"tenant,omitempty"`
	Domain DomainID `json:"domain"`
	Stage  string   `json:"stage,omitempty"` // name of the stage; "": that of Plugin, or the only one
	// The candidate: a module's bytes, which come beside this; or Rules; or a version of a plugin, by its semantic version or
	// hash ("": the active one), of the plugin named or of the stage's.
	Plugin  string          `json:"plugin,omitempty"`
	Version string          `json:"version,omitempty"`
	Rules   json.RawMessage `json:"rules,omitempty"`
	Config  json.RawMessage `json:"config,omitempty"` // nil: as the stage has it
	Since   Time            `json:"since"`            // compared from here on, by when an entry was made
	Until   Time            `json:"until,omitzero"`   // 0: now
	Device  DeviceID        `json:"device,omitempty"` // only this one
	// WarmUp is how much earlier than Since the candidate begins, so that it has a state by then; default 24h, at most what is kept.
	WarmUp Duration `json:"warm_up,omitempty"`
	// Near is how far apart two alerts may be that are taken for one, moved in time; default 15m. Alerts that overlap always are.
	Near       Duration `json:"near,omitempty"`
	DevicesMax int      `json:"devices_max,omitempty"` // that are reported one by one; default 100, at most 1,000
}

// BacktestMode says how a back-test was made.
type BacktestMode string

// The modes of a back-test.
const (
	// BacktestExact repeats the turns as they were, timers included: the candidate is what is deployed.
	BacktestExact BacktestMode = "exact"
	// BacktestCandidate lets a candidate work the inputs off, with timers of its own; many of a device at once where that makes
	// no difference, which is tried again and again.
	BacktestCandidate BacktestMode = "candidate"
	// BacktestByTurn is BacktestCandidate one turn at a time, as it makes a difference.
	BacktestByTurn BacktestMode = "candidate, by turn"
)

// BacktestProgress is how far a back-test has come.
type BacktestProgress struct {
	Done     float64 `json:"done"` // 0 to 1
	Inputs   uint64  `json:"inputs"`
	Readings uint64  `json:"readings"`
	Alerts   uint64  `json:"alerts"` // of the candidate
	Failed   uint64  `json:"failed"` // inputs
}

// BacktestReport is what came of a back-test.
type BacktestReport struct {
	Domain    DomainID     `json:"domain"`
	Stage     string       `json:"stage"`
	Mode      BacktestMode `json:"mode"`
	Candidate ModuleHash   `json:"candidate"`
	// Against says what the candidate is compared with: "recorded" alerts, or, where a pipeline has several stages and the
	// recording doesn't tell whose alert it is, a "re-run" of the stage's active version.
	Against  string             `json:"against"`
	Deployed []ModuleHash       `json:"deployed,omitempty"` // what the recording has of the stage, at most 8
	Since    Time               `json:"since"`
	Until    Time               `json:"until"`
	Reaches  Time               `json:"reaches,omitzero"` // the recording's oldest entry, of the shard that keeps least
	Devices  int                `json:"devices"`          // that had inputs
	Turns    uint64             `json:"turns"`
	Inputs   uint64             `json:"inputs"`
	Readings uint64             `json:"readings"`
	Alerts   BacktestAlerts     `json:"alerts"` // of all devices
	ByDevice []BacktestDevice   `json:"by_device,omitempty"`
	Cost     BacktestCost       `json:"cost"`
	Failures []BacktestFailure  `json:"failures,omitempty"` // at most 16 reasons, most inputs first
	Exact    *BacktestExactness `json:"exact,omitempty"`
	Took     Duration           `json:"took"`
	Missing  []MissingShard     `json:"missing,omitempty"`
}

// BacktestAlerts counts occurrences of alerts, from raise to clear.
type BacktestAlerts struct {
	Recorded  uint64 `json:"recorded"`
	Candidate uint64 `json:"candidate"`
	Same      uint64 `json:"same"`
	Added     uint64 `json:"added"`
	Removed   uint64 `json:"removed"`
	Moved     uint64 `json:"moved"`   // raised or cleared at another moment
	Changed   uint64 `json:"changed"` // of another severity; counted beside the others
}

// BacktestDevice is a device whose alerts differ.
type BacktestDevice struct {
	Device      DeviceID             `json:"device"`
	Alerts      BacktestAlerts       `json:"alerts"`
	Differences []BacktestDifference `json:"differences,omitempty"` // the first 20
}

// BacktestDifference is one alert that differs. Of an alert that was added there is no Recorded, of a removed one no Candidate.
type BacktestDifference struct {
	Kind      string              `json:"kind"` // "added", "removed", "moved", "changed"
	Rule      string              `json:"rule"`
	Key       string              `json:"key,omitempty"`
	Recorded  *BacktestOccurrence `json:"recorded,omitempty"`
	Candidate *BacktestOccurrence `json:"candidate,omitempty"`
}

// BacktestOccurrence is one occurrence of an alert.
type BacktestOccurrence struct {
	ID        string   `json:"id,omitempty"` // of a recorded one
	Severity  Severity `json:"severity"`     // the highest
	RaisedAt  Time     `json:"raised_at"`
	ClearedAt Time     `json:"cleared_at,omitzero"` // 0: still active at the end
	Text      string   `json:"text,omitempty"`
	Value     *float64 `json:"value,omitempty"` // when raised
}

// BacktestCost is what the candidate used.
type BacktestCost struct {
	Fuel   uint64 `json:"fuel"`
	Nanos  uint64 `json:"nanos"`  // in the plugin, with the way there and back
	Inputs uint64 `json:"inputs"` // also those of the warm-up, and its own timers
	Failed uint64 `json:"failed"` // of these
}

// BacktestFailure is a reason for which the candidate failed on inputs.
type BacktestFailure struct {
	Reason string   `json:"reason"` // of the first one
	Inputs uint64   `json:"inputs"`
	Device DeviceID `json:"device"` // the first one
	At     Time     `json:"at"`
}

// BacktestExactness tells how well repeating the turns gave what was recorded.
type BacktestExactness struct {
	Turns       uint64   `json:"turns"`
	Different   uint64   `json:"different"`
	Differences []string `json:"differences,omitempty"` // the first ones
}

// Explanation is how an alert came about.
type Explanation struct {
	Alert   Alert           `json:"-"`
	At      Time            `json:"at"`    // of the entry
	Shard   ShardID         `json:"shard"` // where it is
	Index   uint64          `json:"index"`
	Inputs  []Input         `json:"-"`     // of the turn
	Input   int             `json:"input"` // which of them did it
	Seq     uint64          `json:"seq"`   // of Inputs[0]
	Stage   int             `json:"stage"`
	Name    string          `json:"name,omitempty"` // of the stage
	Hash    ModuleHash      `json:"hash"`
	Plugin  string          `json:"plugin,omitempty"`
	Version string          `json:"version,omitempty"`
	Config  json.RawMessage `json:"config,omitempty"` // as the domain has it now
	Rules   json.RawMessage `json:"rules,omitempty"`
	// Before and After are the plugin's state of the device. StateFrom says how it is known: "log", or "rebuilt" by running the
	// recorded turns from Rebuilt on; with Whole set that is from the device's first input.
	Before    []byte `json:"before"`
	After     []byte `json:"after"`
	StateFrom string `json:"state_from"`
	Rebuilt   Time   `json:"rebuilt,omitzero"`
	Turns     int    `json:"turns"` // that were run for it
	Whole     bool   `json:"whole"`
	// Same reports whether running the turn again, just now, made the same alerts; Difference says what is different.
	Same       bool     `json:"same"`
	Difference string   `json:"difference,omitempty"`
	Again      []Alert  `json:"-"` // the transitions that it made now
	Logs       []string `json:"logs,omitempty"`
	Fuel       uint64   `json:"fuel"`
}

// Replayer asks the past.
type Replayer interface {
	// Backtest runs a candidate over what is recorded. module is nil if it is rules or a version that is known. progress is
	// called now and then, by one goroutine at a time. ErrOverloaded: one is running here already.
	Backtest(ctx context.Context, b Backtest, module []byte, progress func(BacktestProgress)) (*BacktestReport, error)
	// Explain runs the turn again that raised an alert, by Alert.ID. ErrCursorLost: its entry is no longer kept.
	Explain(ctx context.Context, t Tenant, alert string) (*Explanation, error)
	// ReplayLetter hands a dead letter's input, by DeadLetter.ID, to the present version as a new turn, and drops the letter if
	// that succeeds. If the plugin fails again, again is why, and the letter stays.
	ReplayLetter(ctx context.Context, t Tenant, id string) (again string, err error)
	// DropLetter removes a dead letter.
	DropLetter(ctx context.Context, t Tenant, id string) error
}
