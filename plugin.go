package dunlin

import (
	"context"
	"encoding/json"
)

// PluginVersion is one module of a plugin with what is known of it. Versions are told apart by their hash; the semantic
// version is what its author calls it.
type PluginVersion struct {
	Hash       ModuleHash        `json:"hash"`
	Version    string            `json:"version,omitempty"` // semantic version without "v", as the manifest says; "" if it has none
	Bytes      int64             `json:"bytes"`
	Language   string            `json:"language,omitempty"`
	Manifest   json.RawMessage   `json:"manifest,omitempty"` // as in the module
	Report     json.RawMessage   `json:"report,omitempty"`   // what the upload's dry run measured
	Signatures []PluginSignature `json:"signatures,omitempty"`
	Source     string            `json:"source,omitempty"` // where it came from: "upload", "built in", "oci://registry/name@sha256:…"
	By         string            `json:"by,omitempty"`     // who brought it: a principal's id
	At         Time              `json:"at,omitzero"`
	// Banned says why this version was taken out of use automatically; it is not chosen again until somebody activates it.
	Banned string `json:"banned,omitempty"`
}

// PluginSignature is a minisign signature (Ed25519) over the module's bytes, verified when it was brought.
type PluginSignature struct {
	Key     string `json:"key"`               // minisign public key, base64 (56 characters)
	Comment string `json:"comment,omitempty"` // the trusted comment
	Sig     string `json:"sig"`               // the .minisig file
}

// Activation says which version of a plugin runs from a moment on, and why. The newest is the active one. Each is part of
// one entry of the meta shard, so that it takes effect at one index.
type Activation struct {
	Hash   ModuleHash `json:"hash"`
	From   ModuleHash `json:"from,omitzero"` // the version before; zero: none
	At     Time       `json:"at"`
	By     string     `json:"by,omitempty"` // a principal's id, or "dunlin" for what the runtime did by itself
	Reason string     `json:"reason,omitempty"`
}

// TrialKind says how a candidate runs beside the active version.
type TrialKind string

// The kinds of trial.
const (
	// TrialShadow runs the candidate after the active version on the same inputs. Its effects are discarded, differences counted.
	TrialShadow TrialKind = "shadow"
	// TrialCanary runs the candidate in place of the active version on some devices.
	TrialCanary TrialKind = "canary"
)

// Trial is a candidate version that runs beside the active one. It ends by promotion or rollback, by hand or by its gates.
type Trial struct {
	ID    string     `json:"id"` // made when it begins; counts of another trial are not this one's
	Hash  ModuleHash `json:"hash"`
	Kind  TrialKind  `json:"kind"`
	Share float64    `json:"share,omitempty"` // canary: percent of devices, by the hash of their id; 0 to 100
	// Labels select the devices of a canary, or of a shadow: all must be equal. Together with Share both must hold.
	Labels map[string]string `json:"labels,omitempty"`
	Gates  Gates             `json:"gates,omitzero"`
	Since  Time              `json:"since"`
	By     string            `json:"by,omitempty"`
}

// Gates are the conditions under which a trial is ended by the runtime. Zero means the default; a negative number switches a
// gate off. Rates compare the candidate with the active version on the same inputs (shadow), or on its own devices (canary).
type Gates struct {
	InputsMin     int      `json:"inputs_min,omitempty"`      // nothing is judged before the candidate had so many inputs; default 1,000
	ErrorRateMax  float64  `json:"error_rate_max,omitempty"`  // failed inputs by inputs; default 0.001
	FuelRatioMax  float64  `json:"fuel_ratio_max,omitempty"`  // fuel an input by that of the active version; default 3
	AlertRatioMax float64  `json:"alert_ratio_max,omitempty"` // alerts raised an input by those of the active version; default 2
	LatencyMax    Duration `json:"latency_max,omitempty"`     // mean time of an input in the plugin; default 1ms
	PromoteAfter  Duration `json:"promote_after,omitempty"`   // promoted when no gate was hit for so long; 0: by hand only
}

// TrialCounts are what a trial's two versions did, on one node or summed over all.
type TrialCounts struct {
	Candidate     VersionCounts `json:"candidate"`
	Active        VersionCounts `json:"active"`
	Same          uint64        `json:"same"`           // shadow: turns with equal results …
	Differ        uint64        `json:"differ"`         // … and with others
	AlertsOnly    uint64        `json:"alerts_only"`    // shadow: alerts that only the candidate would have raised
	AlertsMissing uint64        `json:"alerts_missing"` // shadow: alerts that only the active version raised
}

// VersionCounts are what one version did since a trial began.
type VersionCounts struct {
	Inputs uint64 `json:"inputs"`
	Failed uint64 `json:"failed"`
	Alerts uint64 `json:"alerts"`
	Fuel   uint64 `json:"fuel"`
	Nanos  uint64 `json:"nanos"` // time in the plugin
}

// PluginSettings is what a person says when bringing a module.
type PluginSettings struct {
	Name       string
	Activate   bool   // make it the active version at once
	Signature  string // a .minisig file; "" if unsigned
	Key        string // the minisign public key that it is to be verified with; "": one of the tenant's domains' signers
	Source     string // for PluginVersion.Source
	By         string
	Reason     string
	IfRevision uint64
}

// Plugins keeps plugins' versions. Every change is an entry of the meta shard and returns once it is committed.
type Plugins interface {
	// BringVersion checks the module and keeps it as a version; a module that is there already only gets what is new.
	BringVersion(ctx context.Context, t Tenant, s PluginSettings, module []byte) (*Plugin, error)
	// Activate makes a version, by hash, the active one. A candidate of a trial with this hash is promoted.
	Activate(ctx context.Context, t Tenant, name string, a Activation, ifRevision uint64) (*Plugin, error)
	// SetTrial begins a trial, in place of another one, or ends it (nil) for the reason.
	SetTrial(ctx context.Context, t Tenant, name string, trial *Trial, reason string, ifRevision uint64) (*Plugin, error)
	// Ban takes a version out of use: if it is the active one, the newest version that was active before and is not banned
	// takes over; if it is a trial's candidate, the trial ends. The runtime does so by itself when a version keeps failing.
	Ban(ctx context.Context, t Tenant, name string, hash ModuleHash, reason string) (*Plugin, error)
	// Module returns the bytes of a version.
	Module(ctx context.Context, t Tenant, name string, hash ModuleHash) ([]byte, error)
}

// Command is a downlink that asks a device to do something, by a deadline. The numbers of its states are part of the entry format.
type Command struct {
	ID       string        `json:"id"`   // unique for the device: seq of the input that made it, and its number there: "1234-0"
	Name     string        `json:"name"` // what is to be done, in the alphabet of metrics without "/"
	Payload  []byte        `json:"payload,omitempty"`
	Format   ContentFormat `json:"format"`
	At       Time          `json:"at"`
	Deadline Time          `json:"deadline"` // in a delta of a device's state 0: it no longer waits for an answer
}

// Publication is a message that a plugin makes for applications: it goes to those who subscribe to its topic.
type Publication struct {
	Topic   string        `json:"topic"` // behind "p/<device>/"; in the alphabet of metrics
	Payload []byte        `json:"payload,omitempty"`
	Format  ContentFormat `json:"format"`
}

// InputError is an input that a plugin refused alone, the others of the turn having been worked off.
type InputError struct {
	Input  int // index in the turn
	Reason string
}

// LifecycleEvent says what happened to a device's registration; the payload of an InputLifecycle is one as JSON.
type LifecycleEvent struct {
	Event  string            `json:"event"` // "registered", "changed" (domain or labels)
	Domain DomainID          `json:"domain"`
	Was    DomainID          `json:"was,omitempty"` // the domain before
	Labels map[string]string `json:"labels,omitempty"`
}
