package dunlin

import (
	"context"
	"iter"
	"time"
)

// Ingestor takes uplinks from gateways to their devices.
type Ingestor interface {
	// Ingest takes the chain of uplinks (Uplink.Next) over without blocking. Each uplink's Waiter is told exactly once.
	Ingest(first *Uplink)
}

// Inspector answers questions about devices.
type Inspector interface {
	// Twin returns the committed state of a registered device; ErrNotFound if there is none.
	Twin(ctx context.Context, key DeviceKey) (*Twin, error)
	// Readings calls yield for each reading in the range, oldest first (newest first if q.Newest), up to q.Limit.
	Readings(ctx context.Context, q ReadingsQuery) (*ReadingsPage, error)
	// Alerts lists alerts, newest transition first within a shard's page.
	Alerts(ctx context.Context, q AlertsQuery) (*AlertsPage, error)
	// DeadLetters lists inputs that plugins failed on, newest first.
	DeadLetters(ctx context.Context, q DeadLettersQuery) (*DeadLettersPage, error)
}

// ReadingsQuery asks for a device's history. From is inclusive, To exclusive; zero means unbounded.
type ReadingsQuery struct {
	DeviceKey
	Metrics []string // empty: all
	From    Time
	To      Time
	Newest  bool          // newest first
	Limit   int           // reports (raw) or buckets; 1 to 10,000, default 1,000
	Bucket  time.Duration // > 0: aggregate per metric and bucket of this width, aligned to the epoch
	Cursor  string        // of the page before; opaque
}

// ReadingsPage is one page of history: either Rows (raw) or Buckets.
type ReadingsPage struct {
	Rows    []Record // by time, then metric; late and repeated reports are already merged
	Buckets []Bucket
	Next    string // "" at the end
}

// Bucket is an aggregate of one metric over [Start, Start+width).
type Bucket struct {
	Metric string  `json:"metric"`
	Start  Time    `json:"start"`
	Count  int     `json:"count"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	Mean   float64 `json:"mean"`
	First  float64 `json:"first"`
	Last   float64 `json:"last"`
}

// AlertsQuery asks for alerts; empty fields match everything.
type AlertsQuery struct {
	Tenant   Tenant
	Device   DeviceID
	Domain   DomainID
	State    AlertState // 0: any
	Active   bool       // only those not cleared
	Severity Severity   // 0: any; otherwise at least this
	Limit    int        // 1 to 1,000, default 100
	Cursor   string
}

// AlertsPage is one page of alerts.
type AlertsPage struct {
	Alerts  []Alert
	Next    string
	Missing []MissingShard // shards that did not answer: the page lacks theirs
}

// DeadLettersQuery asks for dead letters; empty fields match everything.
type DeadLettersQuery struct {
	Tenant Tenant
	Device DeviceID
	Limit  int // default 100, at most 1,000
}

// DeadLettersPage is the newest dead letters.
type DeadLettersPage struct {
	Letters []DeadLetter
	Missing []MissingShard // shards that did not answer: the page lacks theirs
}

// DevicesQuery lists devices by id; empty fields match everything.
type DevicesQuery struct {
	Tenant Tenant
	Domain DomainID
	Prefix string
	Limit  int // 1 to 1,000, default 100
	Cursor string
}

// DevicesPage is one page of devices in order of their ids.
type DevicesPage struct {
	Devices []Device
	Next    string
	Missing []MissingShard // shards that did not answer: the page lacks theirs
}

// AnyRevision, as the revision a change expects, takes whatever is there; 0 means "must not exist yet".
const AnyRevision = ^uint64(0)

// Registrar keeps devices, domains, plugins and credentials. Every change is an entry in the log and returns once it is
// committed. ifRevision guards against lost updates: the change fails with ErrPrecondition if the row's revision differs.
type Registrar interface {
	Device(ctx context.Context, key DeviceKey) (*Device, error)
	Devices(ctx context.Context, q DevicesQuery) (*DevicesPage, error)
	PutDevice(ctx context.Context, d Device, ifRevision uint64) (*Device, error)
	// DeleteDevice removes the device with its twin, history, alerts and timers.
	DeleteDevice(ctx context.Context, key DeviceKey, ifRevision uint64) error

	Domain(ctx context.Context, t Tenant, id DomainID) (*Domain, error)
	Domains(ctx context.Context, t Tenant) ([]Domain, error)
	// PutDomain refuses a pipeline that names an unknown plugin (ErrInvalid says which).
	PutDomain(ctx context.Context, d Domain, ifRevision uint64) (*Domain, error)
	// DeleteDomain fails with ErrConflict while devices belong to it.
	DeleteDomain(ctx context.Context, t Tenant, id DomainID, ifRevision uint64) error

	Plugin(ctx context.Context, t Tenant, name string) (*Plugin, error)
	Plugins(ctx context.Context, t Tenant) ([]Plugin, error)
	// PutPlugin checks the module, keeps it and makes it the name's active version. A bad module is a *ModuleError.
	PutPlugin(ctx context.Context, t Tenant, name string, module []byte, ifRevision uint64) (*Plugin, error)
	// DeletePlugin fails with ErrConflict while a domain's pipeline names it.
	DeletePlugin(ctx context.Context, t Tenant, name string, ifRevision uint64) error

	Credentials(ctx context.Context, t Tenant) ([]Credential, error)
	// PutCredential makes or replaces a credential. An empty secret lets the node make one. It returns the secret.
	PutCredential(ctx context.Context, c Credential, secret string) (string, error)
	DeleteCredential(ctx context.Context, t Tenant, kind CredentialKind, id string) error
}

// ModuleError says what is wrong with an uploaded module. It matches ErrInvalid.
type ModuleError struct {
	Check  string // "size", "parse", "imports", "exports", "memory", "abi", "manifest", "dry-run"
	Detail string // one sentence: what was found, and what to do
}

func (e *ModuleError) Error() string { return "plugin module: " + e.Check + ": " + e.Detail }

// Is makes errors.Is(err, ErrInvalid) true.
func (e *ModuleError) Is(target error) bool { return target == ErrInvalid }

// Authenticator tells who a sender is.
type Authenticator interface {
	// Authenticate returns the principal, or ErrUnauthenticated. On an open node everyone is PrincipalOpen.
	Authenticate(ctx context.Context, a LoginAttempt) (Principal, error)
}

// Feed is the committed entries of all shards, as a stream with positions: what SSE, MQTT subscriptions and sinks read.
// A slow reader holds nobody up and loses nothing: it falls back from memory to the log and its archive.
type Feed interface {
	// Now returns a position that every uplink sent from now on lies behind. It may lie somewhat before the newest committed
	// entry, never after it: shards whose replicas are elsewhere are asked for, for a moment, and taken as they were last
	// known if nobody answers. ErrUnavailable: of some shard nothing is known yet. On a lone node it neither blocks nor fails.
	Now(ctx context.Context) (Cursor, error)
	// Follow yields committed entries from the position on, in index order within a shard, and waits for more until ctx
	// ends. With device set it reads that device's shard only, entries without the device left out. It advances from as it
	// goes: after a yielded item, from is the position behind it. An error ends it: ErrCursorLost, or ctx's.
	Follow(ctx context.Context, from *Cursor, device *DeviceKey) iter.Seq2[FeedItem, error]
}

// FeedItem is one committed entry. The entry is shared: read only.
type FeedItem struct {
	Index uint64
	Entry *Entry
}
