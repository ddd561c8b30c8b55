package httpapi

import (
	"encoding/json"
	"fmt"

	"github.com/dunlin-iot/dunlin"
)

// The views are the dictionary's nouns as the API writes and documents them. Their JSON is that of the nouns, except that
// an alert has its id and numbers that JSON lacks are strings.

type deviceView struct {
	ID        dunlin.DeviceID   `json:"id" readOnly:"true" doc:"1 to 64 of [A-Za-z0-9._:~@-]"`
	Domain    dunlin.DomainID   `json:"domain" doc:"Business domain that it belongs to"`
	Labels    map[string]string `json:"labels,omitempty" doc:"Free key-value pairs" maxProperties:"32"`
	Tenant    dunlin.Tenant     `json:"tenant,omitempty" readOnly:"true"`
	Revision  uint64            `json:"revision,omitempty" readOnly:"true" doc:"Counts changes; the ETag"`
	CreatedAt dunlin.Time       `json:"created_at,omitzero" readOnly:"true" format:"date-time"`
	UpdatedAt dunlin.Time       `json:"updated_at,omitzero" readOnly:"true" format:"date-time"`
}

func deviceViewOf(d *dunlin.Device) deviceView {
	return deviceView{ID: d.ID, Domain: d.Domain, Labels: d.Labels, Tenant: d.Tenant, Revision: d.Revision, CreatedAt: d.CreatedAt, UpdatedAt: d.UpdatedAt}
}

type twinView struct {
	Device   dunlin.DeviceID         `json:"device"`
	Domain   dunlin.DomainID         `json:"domain"`
	Tenant   dunlin.Tenant           `json:"tenant,omitempty"`
	Version  uint64                  `json:"version" doc:"Sequence number of the newest input; the ETag"`
	SeenAt   dunlin.Time             `json:"seen_at,omitzero" format:"date-time" doc:"When the newest uplink was received"`
	Reported map[string]reportedView `json:"reported" doc:"Newest value of each metric"`
	Alerts   []alertView             `json:"alerts,omitempty" nullable:"false" doc:"Active alerts"`
	Plugins  []pluginStateView       `json:"plugins,omitempty" nullable:"false" doc:"State that the domain's plugins keep of the device"`
}

type reportedView struct {
	Value value       `json:"value"`
	Unit  string      `json:"unit,omitempty" doc:"SenML unit"`
	At    dunlin.Time `json:"at" format:"date-time"`
}

type pluginStateView struct {
	Stage int    `json:"stage" doc:"Place in the domain's pipeline, from 0"`
	State []byte `json:"state" doc:"Opaque"`
}

func twinViewOf(t *dunlin.Twin) *twinView {
	v := &twinView{Device: t.Device, Domain: t.Domain, Tenant: t.Tenant, Version: t.Version, SeenAt: t.SeenAt, Alerts: alertViewsOf(t.Alerts),
		Reported: make(map[string]reportedView, len(t.Reported))}
	for metric, r := range t.Reported {
		v.Reported[metric] = reportedView{Value: value{r.Value}, Unit: r.Unit, At: r.At}
	}
	for _, p := range t.Plugins {
		v.Plugins = append(v.Plugins, pluginStateView(p))
	}
	return v
}

type alertView struct {
	ID        string            `json:"id" doc:"device/rule/key/raised_seq, an empty key left out"`
	Tenant    dunlin.Tenant     `json:"tenant,omitempty"`
	Device    dunlin.DeviceID   `json:"device"`
	Domain    dunlin.DomainID   `json:"domain"`
	Rule      string            `json:"rule"`
	Key       string            `json:"key,omitempty" doc:"Tells apart several conditions of one rule at one device"`
	Severity  dunlin.Severity   `json:"severity" doc:"info, warning, major or critical"`
	State     dunlin.AlertState `json:"state" doc:"raised, acknowledged, shelved or cleared"`
	Text      string            `json:"text,omitempty"`
	Value     *number           `json:"value,omitempty" doc:"The value that did it"`
	RaisedAt  dunlin.Time       `json:"raised_at" format:"date-time"`
	RaisedSeq uint64            `json:"raised_seq" doc:"Sequence number of the uplink that raised it"`
	At        dunlin.Time       `json:"at" format:"date-time" doc:"Of the last transition"`
	Seq       uint64            `json:"seq" doc:"Sequence number of the input that did the last transition"`
	ClearedAt dunlin.Time       `json:"cleared_at,omitzero" format:"date-time"`
}

func alertViewOf(a *dunlin.Alert) alertView {
	v := alertView{ID: a.ID(), Tenant: a.Tenant, Device: a.Device, Domain: a.Domain, Rule: a.Rule, Key: a.Key, Severity: a.Severity, State: a.State,
		Text: a.Text, RaisedAt: a.RaisedAt, RaisedSeq: a.RaisedSeq, At: a.At, Seq: a.Seq, ClearedAt: a.ClearedAt}
	if a.Value != nil {
		v.Value = new(number(*a.Value))
	}
	return v
}

func alertViewsOf(alerts []dunlin.Alert) []alertView {
	views := make([]alertView, len(alerts))
	for i := range alerts {
		views[i] = alertViewOf(&alerts[i])
	}
	return views
}

type domainView struct {
	ID              dunlin.DomainID      `json:"id,omitempty" doc:"As in the path; may be left out in a PUT"`
	Owner           string               `json:"owner,omitempty" maxLength:"256" doc:"Who answers for it"`
	Description     string               `json:"description,omitempty" maxLength:"4096"`
	Pipeline        []pluginUseView      `json:"pipeline,omitempty" nullable:"false" maxItems:"16" doc:"Plugins that run on its devices' uplinks, in order"`
	UnknownDevices  dunlin.UnknownPolicy `json:"unknown_devices,omitempty" enum:"reject,register" doc:"What happens to devices never seen; default reject"`
	SkewMax         dunlin.Duration      `json:"skew_max,omitempty" doc:"Record times further from receipt are flagged; default 24h" example:"24h"`
	PayloadBytesMax int                  `json:"payload_bytes_max,omitempty" minimum:"0" doc:"Default and ceiling: the gateway's"`
	RetentionAge    dunlin.Duration      `json:"retention_age,omitempty" doc:"How long history is kept; left out: for ever" example:"720h"`
	Signers         []string             `json:"signers,omitempty" maxItems:"16" doc:"minisign public keys: if any, each plugin of the pipeline must be signed by one of them"`
	PluginShare     int                  `json:"plugin_share,omitempty" minimum:"0" maximum:"1000" doc:"Weight of its plugins when processors are short; default 100"`
	Tenant          dunlin.Tenant        `json:"tenant,omitempty" readOnly:"true"`
	Revision        uint64               `json:"revision,omitempty" readOnly:"true" doc:"Counts changes; the ETag"`
	UpdatedAt       dunlin.Time          `json:"updated_at,omitzero" readOnly:"true" format:"date-time"`
}

type pluginUseView struct {
	Name   string          `json:"name,omitempty" doc:"Of the stage; default the plugin's name"`
	Plugin string          `json:"plugin,omitempty" doc:"The plugin's name; its active version runs"`
	Config json.RawMessage `json:"config,omitempty" doc:"A JSON object, handed to the plugin"`
	Rules  json.RawMessage `json:"rules,omitempty" doc:"Instead of a plugin: a list of rules"`
	Sees   []string        `json:"sees,omitempty" doc:"Names of the stages before it whose derived readings it sees; left out: all of them"`
}

func domainViewOf(d *dunlin.Domain) *domainView {
	v := &domainView{ID: d.ID, Owner: d.Owner, Description: d.Description, UnknownDevices: d.UnknownDevices, SkewMax: d.SkewMax,
		PayloadBytesMax: d.PayloadBytesMax, RetentionAge: d.RetentionAge, Signers: d.Signers, PluginShare: d.PluginShare, Tenant: d.Tenant, Revision: d.Revision, UpdatedAt: d.UpdatedAt}
	for _, p := range d.Pipeline {
		v.Pipeline = append(v.Pipeline, pluginUseView(p))
	}
	return v
}

func (v *domainView) domain(t dunlin.Tenant, id dunlin.DomainID) (dunlin.Domain, error) {
	d := dunlin.Domain{Tenant: t, ID: id, Owner: v.Owner, Description: v.Description, UnknownDevices: v.UnknownDevices, SkewMax: v.SkewMax,
		PayloadBytesMax: v.PayloadBytesMax, RetentionAge: v.RetentionAge, Signers: v.Signers, PluginShare: v.PluginShare}
	if v.ID != "" && v.ID != id {
		return d, invalidValue("body.id", "the body's id is not the path's", string(v.ID))
	}
	for i, p := range v.Pipeline {
		if len(p.Config) > 0 && p.Config[0] != '{' {
			return d, invalidValue(fmt.Sprintf("body.pipeline[%d].config", i), "a plugin's configuration is an object", nil)
		}
		d.Pipeline = append(d.Pipeline, dunlin.PluginUse(p))
	}
	return d, nil
}

type pluginView struct {
	Name        string                `json:"name"`
	Hash        string                `json:"hash" doc:"SHA-256 of the active module"`
	Bytes       int64                 `json:"bytes"`
	Language    string                `json:"language,omitempty" doc:"As the module's producers section says"`
	Previous    []string              `json:"previous,omitempty" nullable:"false" doc:"Hashes of earlier versions, newest first"`
	Report      json.RawMessage       `json:"report,omitempty" doc:"What the upload's dry run measured"`
	Versions    []versionOfPluginView `json:"versions,omitempty" nullable:"false" doc:"Modules that may run, newest first"`
	Activations []activationView      `json:"activations,omitempty" nullable:"false" doc:"What ran since when and why, newest first"`
	Trial       *trialView            `json:"trial,omitempty" doc:"The candidate that runs beside the active version"`
	Tenant      dunlin.Tenant         `json:"tenant,omitempty"`
	Revision    uint64                `json:"revision,omitempty" doc:"Counts changes; the ETag"`
	UpdatedAt   dunlin.Time           `json:"updated_at,omitzero" format:"date-time"`
}

func pluginViewOf(p *dunlin.Plugin) *pluginView {
	v := &pluginView{Name: p.Name, Hash: p.Hash.String(), Bytes: p.Bytes, Language: p.Language, Report: p.Report, Tenant: p.Tenant,
		Revision: p.Revision, UpdatedAt: p.UpdatedAt, Versions: versionsOf(p), Activations: activationsOf(p), Trial: trialViewOf(p.Trial)}
	for _, h := range p.Previous {
		v.Previous = append(v.Previous, h.String())
	}
	return v
}

type credentialView struct {
	ID        string                `json:"id" doc:"Device id, MQTT user name or token name"`
	Kind      dunlin.CredentialKind `json:"kind" enum:"device,gateway,application,operator"`
	Domain    dunlin.DomainID       `json:"domain,omitempty" doc:"Where a device that is not registered yet belongs; a gateway's reach"`
	Tenant    dunlin.Tenant         `json:"tenant,omitempty"`
	Revision  uint64                `json:"revision,omitempty"`
	CreatedAt dunlin.Time           `json:"created_at,omitzero" format:"date-time"`
}

// credentialViewOf leaves the hash out: it never leaves the node.
func credentialViewOf(c *dunlin.Credential) credentialView {
	return credentialView{ID: c.ID, Kind: c.Kind, Domain: c.Domain, Tenant: c.Tenant, Revision: c.Revision, CreatedAt: c.CreatedAt}
}

type deadLetterView struct {
	ID       string          `json:"id" doc:"device/stage/seq"`
	Device   dunlin.DeviceID `json:"device"`
	Domain   dunlin.DomainID `json:"domain"`
	Stage    int             `json:"stage" doc:"Place of the plugin in the domain's pipeline, from 0"`
	Hash     string          `json:"hash" doc:"The module that failed"`
	Seq      uint64          `json:"seq" doc:"Sequence number of the input"`
	At       dunlin.Time     `json:"at" format:"date-time"`
	Reason   string          `json:"reason"`
	Received dunlin.Time     `json:"received,omitzero" format:"date-time"`
	Records  []recordView    `json:"records,omitempty" nullable:"false"`
	Payload  []byte          `json:"payload,omitempty" doc:"Of an undecoded input"`
	Timer    string          `json:"timer,omitempty" doc:"Name of the timer that fired, or id of the command that has a result"`
}

type recordView struct {
	Metric string      `json:"metric"`
	Unit   string      `json:"unit,omitempty" doc:"SenML unit"`
	Time   dunlin.Time `json:"time" format:"date-time"`
	Value  value       `json:"value"`
}

func deadLetterViewOf(d *dunlin.DeadLetter) deadLetterView {
	v := deadLetterView{ID: d.ID(), Device: d.Device, Domain: d.Domain, Stage: int(d.Stage), Hash: d.Hash.String(), Seq: d.Seq, At: d.At, Reason: d.Reason,
		Received: d.Input.Received, Payload: d.Input.Payload, Timer: d.Input.Timer}
	for i := range d.Input.Records {
		r := &d.Input.Records[i]
		v.Records = append(v.Records, recordView{Metric: r.Metric, Unit: r.Unit, Time: r.Time, Value: value{r.Value()}})
	}
	return v
}

// bucketView documents dunlin.Bucket; appendBucket writes it.
type bucketView struct {
	Metric string      `json:"metric"`
	Start  dunlin.Time `json:"start" format:"date-time"`
	Count  int         `json:"count"`
	Min    number      `json:"min"`
	Max    number      `json:"max"`
	Mean   number      `json:"mean"`
	First  number      `json:"first"`
	Last   number      `json:"last"`
}

// readingsView documents a page of readings; serveReadings writes it.
type readingsView struct {
	Device   dunlin.DeviceID `json:"device"`
	Readings []recordView    `json:"readings,omitempty" nullable:"false" doc:"Without bucket"`
	Buckets  []bucketView    `json:"buckets,omitempty" nullable:"false" doc:"With bucket"`
	Next     string          `json:"next,omitempty" doc:"Link to the next page"`
}

// listView is a page of a list.
type listView[T any] struct {
	Items   []T                   `json:"items" nullable:"false"`
	Next    string                `json:"next,omitempty" doc:"Link to the next page; left out on the last"`
	Missing []dunlin.MissingShard `json:"missing,omitempty" nullable:"false" doc:"Shards that did not answer: the page lacks theirs"`
}
