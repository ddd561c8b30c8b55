package client

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// DevicesQuery filters devices; empty fields match everything.
type DevicesQuery struct {
	Domain dunlin.DomainID
	Prefix string
	Page   int // devices a request; 0: the node's default
}

// Devices lists devices in order of their ids.
func (c *Client) Devices(ctx context.Context, q DevicesQuery) iter.Seq2[dunlin.Device, error] {
	return listOf[dunlin.Device](ctx, c, "/v1/devices", values("domain", string(q.Domain), "prefix", q.Prefix, "limit", number(q.Page)))
}

// Device returns a device's registration.
func (c *Client) Device(ctx context.Context, id dunlin.DeviceID) (*dunlin.Device, error) {
	return get[dunlin.Device](ctx, c, path("v1", "devices", string(id)), c.fresh(nil))
}

// PutDevice registers a device or changes its domain and labels. ifRevision guards against lost updates, here and in all
// changes: dunlin.AnyRevision takes whatever is there, 0 only creates, another number changes only that revision.
func (c *Client) PutDevice(ctx context.Context, d dunlin.Device, ifRevision uint64) (*dunlin.Device, error) {
	return put[dunlin.Device](ctx, c, path("v1", "devices", string(d.ID)), d, ifRevision)
}

// DeleteDevice removes a device with its twin, history, alerts and timers.
func (c *Client) DeleteDevice(ctx context.Context, id dunlin.DeviceID, ifRevision uint64) error {
	return c.remove(ctx, path("v1", "devices", string(id)), ifRevision)
}

// State returns a device's twin.
func (c *Client) State(ctx context.Context, id dunlin.DeviceID) (*Twin, error) {
	return get[Twin](ctx, c, path("v1", "devices", string(id), "state"), c.fresh(nil))
}

// ReadingsQuery asks for history. From and To are RFC 3339, "now", or a span from now such as "-1h"; empty: unbounded.
type ReadingsQuery struct {
	Metrics []string
	From    string
	To      string
	Bucket  string // of Buckets: the width, such as "5m"
	Newest  bool   // newest first
	Page    int    // reports or buckets a request; 0: the node's default
}

func (q ReadingsQuery) values() url.Values {
	v := values("from", q.From, "to", q.To, "bucket", q.Bucket, "limit", number(q.Page))
	if len(q.Metrics) > 0 {
		v["metric"] = q.Metrics
	}
	if q.Newest {
		v.Set("order", "desc")
	}
	return v
}

// Readings lists a device's history as it was reported.
func (c *Client) Readings(ctx context.Context, id dunlin.DeviceID, q ReadingsQuery) iter.Seq2[Reading, error] {
	type page struct {
		Readings []Reading `json:"readings"`
		Next     string    `json:"next"`
	}
	q.Bucket = ""
	return pages(ctx, c, path("v1", "devices", string(id), "readings"), c.fresh(q.values()), func(p *page) ([]Reading, string) { return p.Readings, p.Next })
}

// Buckets lists a device's history in buckets of q.Bucket.
func (c *Client) Buckets(ctx context.Context, id dunlin.DeviceID, q ReadingsQuery) iter.Seq2[Bucket, error] {
	type page struct {
		Buckets []Bucket `json:"buckets"`
		Next    string   `json:"next"`
	}
	return pages(ctx, c, path("v1", "devices", string(id), "readings"), c.fresh(q.values()), func(p *page) ([]Bucket, string) { return p.Buckets, p.Next })
}

// AlertsQuery filters alerts; empty fields match everything.
type AlertsQuery struct {
	Device   dunlin.DeviceID
	Domain   dunlin.DomainID
	State    string // raised, acknowledged, shelved or cleared
	Active   bool   // only those not cleared
	Severity string // at least this: info, warning, major or critical
	Page     int    // alerts a request; 0: the node's default
}

// Alerts lists alerts.
func (c *Client) Alerts(ctx context.Context, q AlertsQuery) iter.Seq2[Alert, error] {
	at := "/v1/alerts"
	if q.Device != "" {
		at = path("v1", "devices", string(q.Device), "alerts")
	}
	v := values("domain", string(q.Domain), "state", q.State, "severity", q.Severity, "limit", number(q.Page))
	if q.Active {
		v.Set("active", "true")
	}
	return listOf[Alert](ctx, c, at, v)
}

// DeadLetters lists inputs that a plugin failed on, newest first; of one device if that is not "".
func (c *Client) DeadLetters(ctx context.Context, device dunlin.DeviceID, limit int) iter.Seq2[DeadLetter, error] {
	return listOf[DeadLetter](ctx, c, "/v1/deadletters", values("device", string(device), "limit", number(limit)))
}

// Domains lists domains.
func (c *Client) Domains(ctx context.Context) iter.Seq2[dunlin.Domain, error] {
	return listOf[dunlin.Domain](ctx, c, "/v1/domains", nil)
}

// Domain returns a domain.
func (c *Client) Domain(ctx context.Context, id dunlin.DomainID) (*dunlin.Domain, error) {
	return get[dunlin.Domain](ctx, c, path("v1", "domains", string(id)), c.fresh(nil))
}

// PutDomain creates or changes a domain.
func (c *Client) PutDomain(ctx context.Context, d dunlin.Domain, ifRevision uint64) (*dunlin.Domain, error) {
	return put[dunlin.Domain](ctx, c, path("v1", "domains", string(d.ID)), d, ifRevision)
}

// ApplyDomain creates or changes a domain as a file says it; mediaType is application/yaml or application/json.
func (c *Client) ApplyDomain(ctx context.Context, id dunlin.DomainID, mediaType string, file []byte, ifRevision uint64) (*dunlin.Domain, error) {
	return putBytes[dunlin.Domain](ctx, c, path("v1", "domains", string(id)), mediaType, file, ifRevision)
}

// DeleteDomain removes a domain that no device belongs to.
func (c *Client) DeleteDomain(ctx context.Context, id dunlin.DomainID, ifRevision uint64) error {
	return c.remove(ctx, path("v1", "domains", string(id)), ifRevision)
}

// Plugins lists plugins.
func (c *Client) Plugins(ctx context.Context) iter.Seq2[dunlin.Plugin, error] {
	return listOf[dunlin.Plugin](ctx, c, "/v1/plugins", nil)
}

// Plugin returns a plugin's active version.
func (c *Client) Plugin(ctx context.Context, name string) (*dunlin.Plugin, error) {
	return get[dunlin.Plugin](ctx, c, path("v1", "plugins", name), c.fresh(nil))
}

// PushPlugin uploads a module and makes it the plugin's active version. Of a refused module, Error.Check names the check.
func (c *Client) PushPlugin(ctx context.Context, name string, module []byte, ifRevision uint64) (*dunlin.Plugin, error) {
	return putBytes[dunlin.Plugin](ctx, c, path("v1", "plugins", name), "application/wasm", module, ifRevision)
}

// DeletePlugin removes a plugin that no pipeline names.
func (c *Client) DeletePlugin(ctx context.Context, name string, ifRevision uint64) error {
	return c.remove(ctx, path("v1", "plugins", name), ifRevision)
}

// Credentials lists credentials, without their secrets.
func (c *Client) Credentials(ctx context.Context) iter.Seq2[dunlin.Credential, error] {
	return listOf[dunlin.Credential](ctx, c, "/v1/credentials", nil)
}

// PutCredential makes or replaces a credential and returns its secret, which the node shows this once. With an empty
// secret the node makes one.
func (c *Client) PutCredential(ctx context.Context, cred dunlin.Credential, secret string) (string, error) {
	doc := struct {
		Domain dunlin.DomainID `json:"domain,omitempty"`
		Secret string          `json:"secret,omitempty"`
	}{cred.Domain, secret}
	body, err := json.Marshal(doc)
	if err != nil {
		return "", err
	}
	var out struct{ Secret string }
	_, err = c.do(ctx, request{method: http.MethodPut, path: path("v1", "credentials", string(cred.Kind), cred.ID),
		header: http.Header{"Content-Type": {"application/json"}}, body: body, again: secret != ""}, &out)
	return out.Secret, err
}

// DeleteCredential removes a credential.
func (c *Client) DeleteCredential(ctx context.Context, kind dunlin.CredentialKind, id string) error {
	return c.remove(ctx, path("v1", "credentials", string(kind), id), dunlin.AnyRevision)
}

// Version says what runs at the other end.
func (c *Client) Version(ctx context.Context) (*Version, error) {
	return get[Version](ctx, c, "/v1/version", nil)
}

// Ready returns nil when the node takes work, and otherwise an *Error that says why not. It does not wait.
func (c *Client) Ready(ctx context.Context) error {
	_, err := c.once(ctx, request{method: http.MethodGet, path: "/readyz"}, nil)
	return err
}

// Send sends one uplink and returns when it is committed. key tells a repetition from another uplink (crypto/rand.Text
// makes a good one); with a key a 503 is retried, since a repetition counts once.
func (c *Client) Send(ctx context.Context, device dunlin.DeviceID, mediaType string, payload []byte, key string) (Receipt, error) {
	header := http.Header{"Content-Type": {mediaType}}
	if key != "" {
		header.Set("Idempotency-Key", key)
	}
	var r Receipt
	if payload == nil {
		payload = []byte{}
	}
	_, err := c.do(ctx, request{method: http.MethodPost, path: path("v1", "devices", string(device), "t"), header: header, body: payload, again: key != ""}, &r)
	return r, err
}

// SendBatch sends uplinks of several devices. Each item has its own result, in order; the error is about the batch as a
// whole, and then nothing of it was taken.
func (c *Client) SendBatch(ctx context.Context, items []Item, key string) ([]ItemResult, error) {
	body, err := json.Marshal(items)
	if err != nil {
		return nil, err
	}
	header := http.Header{"Content-Type": {"application/json"}}
	if key != "" {
		header.Set("Idempotency-Key", key)
	}
	var out struct{ Items []ItemResult }
	if _, err := c.do(ctx, request{method: http.MethodPost, path: "/v1/ingest", header: header, body: body, again: key != ""}, &out); err != nil {
		return nil, err
	}
	if len(out.Items) != len(items) {
		return nil, errors.New("the answer has another number of items than the batch")
	}
	return out.Items, nil
}

// WaitReady waits until the node takes work, asking every interval; ctx bounds it. The last reason is in the error.
func (c *Client) WaitReady(ctx context.Context, interval time.Duration) error {
	for {
		err := c.Ready(ctx)
		if err == nil {
			return nil
		}
		if !sleep(ctx, interval) {
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

// values makes a query of names and values, empty values left out.
func values(pairs ...string) url.Values {
	v := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			v.Set(pairs[i], pairs[i+1])
		}
	}
	return v
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}
