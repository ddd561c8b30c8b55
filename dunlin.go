// Package dunlin is the dictionary of the runtime: the nouns that two or more rooms speak (Uplink, Record, Change,
// Entry, Alert, Domain, …) and the few verbs between them (Ingestor, Inspector, Registrar, Authenticator, Feed).
// It imports only the standard library and does nothing by itself; rooms know the dictionary, not each other.
//
// Part of the runtime; no compatibility promise before v1.
//
// # The way of a reading
//
// A gateway authenticates a sender, decodes the payload and hands an Uplink to the Ingestor. The device's shard actor
// takes a batch of uplinks, lets each device's domain pipeline turn them into Outcomes, and proposes one Entry: inputs,
// plugin hashes and outputs. When a majority of the shard's replicas has the entry on disk, every replica applies it in
// one batch, and only then does the gateway see the uplink's Receipt and answer the device.
package dunlin

import (
	"fmt"
	"strings"
	"time"
)

// Tenant says whose data something is. Every key in every store starts with it.
type Tenant string

// DefaultTenant is the tenant of a node nobody has divided.
const DefaultTenant Tenant = "default"

// DeviceID names a device within its tenant: 1 to 64 bytes, see Validate.
type DeviceID string

// DomainID names a business domain within its tenant, in the same alphabet as a DeviceID.
type DomainID string

// DeviceKey is a device's full name.
type DeviceKey struct {
	Tenant Tenant
	Device DeviceID
}

func (k DeviceKey) String() string { return string(k.Tenant) + "/" + string(k.Device) }

// NameBytesMax bounds device, domain, plugin and tenant names, in bytes.
const NameBytesMax = 64

// MetricBytesMax bounds a metric's name, in bytes.
const MetricBytesMax = 128

// Validate reports whether the id can be a topic level, a URI path segment and a key: 1 to 64 bytes of
// [A-Za-z0-9._:~@-], the first a letter or digit.
func (d DeviceID) Validate() error { return validateName("device id", string(d)) }

// Validate applies the rules of DeviceID.Validate.
func (d DomainID) Validate() error { return validateName("domain id", string(d)) }

// Validate applies the rules of DeviceID.Validate.
func (t Tenant) Validate() error { return validateName("tenant", string(t)) }

// ValidatePluginName applies the rules of DeviceID.Validate to a plugin's name.
func ValidatePluginName(name string) error { return validateName("plugin name", name) }

func validateName(what, s string) error {
	if s == "" || len(s) > NameBytesMax {
		return fmt.Errorf("%w: %s has %d bytes, want 1 to %d", ErrInvalid, what, len(s), NameBytesMax)
	}
	for i := range len(s) {
		c := s[i]
		alnum := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !alnum && (i == 0 || !strings.ContainsRune("._:~@-", rune(c))) {
			return fmt.Errorf("%w: %s %q: byte %d (%q) is not allowed there", ErrInvalid, what, s, i, c)
		}
	}
	return nil
}

// ValidateMetric reports whether m can name a metric: 1 to 128 bytes in the alphabet of SenML names (RFC 8428 §4.5.1):
// letters, digits and [-:./_], the first a letter or digit.
func ValidateMetric(m string) error {
	if m == "" || len(m) > MetricBytesMax {
		return fmt.Errorf("%w: metric name has %d bytes, want 1 to %d", ErrInvalid, len(m), MetricBytesMax)
	}
	for i := range len(m) {
		c := m[i]
		alnum := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !alnum && (i == 0 || c != '-' && c != ':' && c != '.' && c != '/' && c != '_') {
			return fmt.Errorf("%w: metric name %q: byte %d (%q) is not allowed there", ErrInvalid, m, i, c)
		}
	}
	return nil
}

// Time is a moment in microseconds since the Unix epoch, UTC. Zero means "not given".
type Time int64

// TimeOf converts a time.Time.
func TimeOf(t time.Time) Time { return Time(t.UnixMicro()) }

// Std converts to a time.Time in UTC.
func (t Time) Std() time.Time { return time.UnixMicro(int64(t)).UTC() }

// Add returns t+d; d is cut to whole microseconds.
func (t Time) Add(d time.Duration) Time { return t + Time(d.Microseconds()) }

// Sub returns the duration t−u.
func (t Time) Sub(u Time) time.Duration { return time.Duration(t-u) * time.Microsecond }

// String is RFC 3339 with as many fraction digits as needed.
func (t Time) String() string { return t.Std().Format(time.RFC3339Nano) }

// MarshalText renders RFC 3339, so that JSON shows times as people read them.
func (t Time) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText parses RFC 3339.
func (t *Time) UnmarshalText(b []byte) error {
	s, err := time.Parse(time.RFC3339Nano, string(b))
	if err != nil {
		return fmt.Errorf("%w: time %q is not RFC 3339", ErrInvalid, b)
	}
	*t = TimeOf(s)
	return nil
}

// ShardID numbers a fixed slice of the device space, 0 to shards−1. Shard 0 also holds the registry (meta shard).
type ShardID uint16

// MetaShard holds domains, plugins, credentials and placement.
const MetaShard ShardID = 0
