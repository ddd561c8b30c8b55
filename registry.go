package dunlin

import "encoding/json"

// UnknownPolicy says what a domain does with a device that it has never seen.
type UnknownPolicy string

// The policies for unknown devices.
const (
	UnknownReject   UnknownPolicy = "reject"
	UnknownRegister UnknownPolicy = "register"
)

// Domain is a business domain: who owns it, which plugins run on its devices' uplinks, and its bounds.
// The zero value of a bound means its default.
type Domain struct {
	Tenant          Tenant        `json:"tenant,omitempty"`
	ID              DomainID      `json:"id"`
	Owner           string        `json:"owner"`
	Description     string        `json:"description,omitempty"`
	Pipeline        []PluginUse   `json:"pipeline,omitempty"`
	UnknownDevices  UnknownPolicy `json:"unknown_devices,omitempty"`   // default reject
	SkewMax         Duration      `json:"skew_max,omitempty"`          // default 24h: record times further from receipt are flagged
	PayloadBytesMax int           `json:"payload_bytes_max,omitempty"` // default and ceiling: the gateway's
	RetentionAge    Duration      `json:"retention_age,omitempty"`     // 0: keep for ever
	Signers         []string      `json:"signers,omitempty"`           // minisign public keys: if any, each plugin of the pipeline must be signed by one
	PluginShare     int           `json:"plugin_share,omitempty"`      // weight of its plugins when processors are short, 1 to 1,000; default 100
	Revision        uint64        `json:"revision,omitempty"`          // counts changes; the ETag
	UpdatedAt       Time          `json:"updated_at,omitzero"`
}

// PluginUse is one stage of a domain's pipeline: a plugin, or rules.
type PluginUse struct {
	Name   string          `json:"name,omitempty"`   // of the stage; default the plugin's name; unique in the pipeline
	Plugin string          `json:"plugin,omitempty"` // name; its active version runs
	Config json.RawMessage `json:"config,omitempty"` // JSON object handed to the plugin
	Rules  json.RawMessage `json:"rules,omitempty"`  // instead of Plugin: a JSON array of rules, see docs/rules.md
	// Sees names the stages before it whose derived readings it sees; nil: those of all stages before it. A stage that is not
	// before it would be a cycle, and is refused.
	Sees []string `json:"sees,omitempty"`
}

// Plugin is module + manifest + version: the active version of a name, and the ones before it.
type Plugin struct {
	Tenant   Tenant          `json:"tenant,omitempty"`
	Name     string          `json:"name"`
	Hash     ModuleHash      `json:"hash"`
	Bytes    int64           `json:"bytes"`
	Language string          `json:"language,omitempty"` // as the module's producers section says
	Previous []ModuleHash    `json:"previous,omitempty"` // newest first, at most 10
	Report   json.RawMessage `json:"report,omitempty"`   // what the upload's dry run measured
	// Versions are the modules that may run, newest first, at most 20; Activations what ran since when, newest first, at most 50.
	Versions    []PluginVersion `json:"versions,omitempty"`
	Activations []Activation    `json:"activations,omitempty"`
	Trial       *Trial          `json:"trial,omitempty"`
	Revision    uint64          `json:"revision,omitempty"`
	UpdatedAt   Time            `json:"updated_at,omitzero"`
}

// Device is a registered device, without its twin.
type Device struct {
	Tenant    Tenant            `json:"tenant,omitempty"`
	ID        DeviceID          `json:"id"`
	Domain    DomainID          `json:"domain"`
	Labels    map[string]string `json:"labels,omitempty"`
	Revision  uint64            `json:"revision,omitempty"`
	CreatedAt Time              `json:"created_at,omitzero"`
	UpdatedAt Time              `json:"updated_at,omitzero"`
}

// Twin is what is known of a device now: the newest value of each metric, its plugins' state and its active alerts.
type Twin struct {
	Tenant   Tenant              `json:"tenant,omitempty"`
	Device   DeviceID            `json:"device"`
	Domain   DomainID            `json:"domain"`
	Version  uint64              `json:"version"` // sequence number of the newest input; the ETag
	SeenAt   Time                `json:"seen_at,omitzero"`
	Reported map[string]Reported `json:"reported"`
	Alerts   []Alert             `json:"alerts,omitempty"` // active ones
	Plugins  []PluginState       `json:"plugins,omitempty"`
	Commands []Command           `json:"commands,omitempty"` // that wait for their answer, oldest first
}

// Reported is a metric's newest value by record time.
type Reported struct {
	Value any    `json:"value"` // float64, bool, string, or []byte (base64 in JSON)
	Unit  string `json:"unit,omitempty"`
	At    Time   `json:"at"`
}

// PluginState is a plugin's opaque state of one device.
type PluginState struct {
	Stage int    `json:"stage"`
	State []byte `json:"state"`
}

// CredentialKind says what a credential opens.
type CredentialKind string

// The kinds of credential, each for the principal of the same name.
const (
	CredentialDevice      CredentialKind = "device"
	CredentialGateway     CredentialKind = "gateway"
	CredentialApplication CredentialKind = "application"
	CredentialOperator    CredentialKind = "operator"
)

// Credential is a name and the hash of a secret. The secret itself is shown once, when it is made.
type Credential struct {
	Tenant    Tenant         `json:"tenant,omitempty"`
	ID        string         `json:"id"` // device id for devices, MQTT user name, token name
	Kind      CredentialKind `json:"kind"`
	Domain    DomainID       `json:"domain,omitempty"` // where a device that is not registered yet belongs; a gateway's reach
	Hash      string         `json:"hash,omitempty"`   // never leaves the node
	Revision  uint64         `json:"revision,omitempty"`
	CreatedAt Time           `json:"created_at,omitzero"`
}

// LoginAttempt is what a sender shows for itself.
type LoginAttempt struct {
	Tenant   Tenant // "" means DefaultTenant
	ID       string // user name; "" with a bearer token, which carries its id
	Secret   []byte
	Protocol string // "mqtt", "coap", "http"; for the log
	Remote   string // address; for the log and for rate limits
}
