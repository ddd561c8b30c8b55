package client

import (
	"encoding/json"
	"math"
	"strconv"

	"github.com/dunlin-iot/dunlin"
)

// Number is a float64 that JSON can always carry: NaN and the infinities come and go as strings.
type Number float64

// MarshalJSON renders a number, or "NaN", "Infinity", "-Infinity".
func (n Number) MarshalJSON() ([]byte, error) {
	f := float64(n)
	switch {
	case math.IsNaN(f):
		return []byte(`"NaN"`), nil
	case math.IsInf(f, 1):
		return []byte(`"Infinity"`), nil
	case math.IsInf(f, -1):
		return []byte(`"-Infinity"`), nil
	}
	return json.Marshal(f)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (n *Number) UnmarshalJSON(b []byte) error {
	if len(b) > 2 && b[0] == '"' {
		b = b[1 : len(b)-1]
	}
	f, err := strconv.ParseFloat(string(b), 64)
	*n = Number(f)
	return err
}

// Reading is one value of one metric at one time. Value is a float64, bool or string; bytes come as base64, and numbers
// that JSON lacks as "NaN", "Infinity" or "-Infinity".
type Reading struct {
	Metric string      `json:"metric"`
	Unit   string      `json:"unit,omitempty"`
	Time   dunlin.Time `json:"time"`
	Value  any         `json:"value"`
}

// Bucket is an aggregate of one metric over a bucket's width from Start on.
type Bucket struct {
	Metric string      `json:"metric"`
	Start  dunlin.Time `json:"start"`
	Count  int         `json:"count"`
	Min    Number      `json:"min"`
	Max    Number      `json:"max"`
	Mean   Number      `json:"mean"`
	First  Number      `json:"first"`
	Last   Number      `json:"last"`
}

// Alert is one occurrence of a rule's condition at a device.
type Alert struct {
	ID        string            `json:"id"`
	Tenant    dunlin.Tenant     `json:"tenant,omitempty"`
	Device    dunlin.DeviceID   `json:"device"`
	Domain    dunlin.DomainID   `json:"domain"`
	Rule      string            `json:"rule"`
	Key       string            `json:"key,omitempty"`
	Severity  dunlin.Severity   `json:"severity"`
	State     dunlin.AlertState `json:"state"`
	Text      string            `json:"text,omitempty"`
	Value     *Number           `json:"value,omitempty"`
	RaisedAt  dunlin.Time       `json:"raised_at"`
	RaisedSeq uint64            `json:"raised_seq"`
	At        dunlin.Time       `json:"at"`
	Seq       uint64            `json:"seq"`
	ClearedAt dunlin.Time       `json:"cleared_at,omitzero"`
}

// Twin is what is known of a device now.
type Twin struct {
	Tenant   dunlin.Tenant        `json:"tenant,omitempty"`
	Device   dunlin.DeviceID      `json:"device"`
	Domain   dunlin.DomainID      `json:"domain"`
	Version  uint64               `json:"version"`
	SeenAt   dunlin.Time          `json:"seen_at,omitzero"`
	Reported map[string]Reported  `json:"reported"`
	Alerts   []Alert              `json:"alerts,omitempty"`
	Plugins  []dunlin.PluginState `json:"plugins,omitempty"`
}

// Reported is a metric's newest value; Value as in Reading.
type Reported struct {
	Value any         `json:"value"`
	Unit  string      `json:"unit,omitempty"`
	At    dunlin.Time `json:"at"`
}

// DeadLetter is an input that a plugin failed on.
type DeadLetter struct {
	Device   dunlin.DeviceID   `json:"device"`
	Domain   dunlin.DomainID   `json:"domain"`
	Stage    int               `json:"stage"`
	Hash     dunlin.ModuleHash `json:"hash"`
	Seq      uint64            `json:"seq"`
	At       dunlin.Time       `json:"at"`
	Reason   string            `json:"reason"`
	Received dunlin.Time       `json:"received,omitzero"`
	Records  []Reading         `json:"records,omitempty"`
	Payload  []byte            `json:"payload,omitempty"`
	Timer    string            `json:"timer,omitempty"`
}

// Version says what runs at the other end.
type Version struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go,omitempty"`
	Node    string `json:"node,omitempty"`
	API     string `json:"api"`
	Tenant  string `json:"tenant"`
}

// Receipt is the answer to an uplink that was committed.
type Receipt struct {
	Seq       uint64 `json:"seq"`
	Duplicate bool   `json:"duplicate"`
	Created   bool   `json:"created,omitempty"`
}

// Item is one uplink of a batch: Payload as JSON (an array is SenML, an object metric → value), or any bytes in Bytes with
// their media type in Format.
type Item struct {
	Device  dunlin.DeviceID `json:"device"`
	ID      string          `json:"id,omitempty"` // the item's own idempotency key
	Format  string          `json:"format,omitempty"`
	Payload json.RawMessage `json:"payload,omitempty"`
	Bytes   []byte          `json:"payload_base64,omitempty"`
}

// ItemResult is what became of an item: a receipt, or a problem.
type ItemResult struct {
	Device dunlin.DeviceID `json:"device"`
	Receipt
	Problem *Error `json:"problem,omitempty"`
}
