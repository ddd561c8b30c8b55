package httpapi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dunlin-iot/dunlin"
)

// TrialCounter sums what a plugin's trial has counted on all nodes.
type TrialCounter interface {
	// TrialCounts returns the sum of what the nodes have counted since the trial began, and how many of them did not answer.
	TrialCounts(ctx context.Context, t dunlin.Tenant, plugin, trial string) (sum dunlin.TrialCounts, missing int, err error)
}

type versionOfPluginView struct {
	Hash       string          `json:"hash" doc:"SHA-256 of the module"`
	Version    string          `json:"version,omitempty" doc:"Semantic version, as the module's manifest says"`
	Active     bool            `json:"active,omitempty"`
	Bytes      int64           `json:"bytes,omitempty"`
	Language   string          `json:"language,omitempty"`
	Manifest   json.RawMessage `json:"manifest,omitempty" doc:"As in the module's section dunlin.manifest"`
	Report     json.RawMessage `json:"report,omitempty" doc:"What the upload's dry run measured"`
	Signatures []signatureView `json:"signatures,omitempty" nullable:"false"`
	Source     string          `json:"source,omitempty" doc:"Where it came from: upload, built in, oci://registry/name@digest"`
	By         string          `json:"by,omitempty" doc:"Who brought it"`
	At         dunlin.Time     `json:"at,omitzero" format:"date-time"`
	Banned     string          `json:"banned,omitempty" doc:"Why the runtime took it out of use"`
}

type signatureView struct {
	Key     string `json:"key" doc:"minisign public key"`
	Comment string `json:"comment,omitempty" doc:"The trusted comment"`
}

type activationView struct {
	Hash   string      `json:"hash"`
	From   string      `json:"from,omitempty" doc:"The version before"`
	At     dunlin.Time `json:"at" format:"date-time"`
	By     string      `json:"by,omitempty" doc:"Who; dunlin: the runtime itself"`
	Reason string      `json:"reason,omitempty"`
}

type trialView struct {
	ID     string            `json:"id,omitempty" readOnly:"true"`
	Hash   string            `json:"hash" doc:"The candidate: hash, prefix of it, or semantic version"`
	Kind   dunlin.TrialKind  `json:"kind" enum:"shadow,canary" doc:"shadow: runs beside, effects discarded; canary: runs in place of the active version on some devices"`
	Share  float64           `json:"share,omitempty" minimum:"0" maximum:"100" doc:"Percent of the devices"`
	Labels map[string]string `json:"labels,omitempty" doc:"Select devices: all must be equal"`
	Gates  dunlin.Gates      `json:"gates,omitzero" doc:"When the runtime promotes the candidate or takes it back by itself"`
	Since  dunlin.Time       `json:"since,omitzero" readOnly:"true" format:"date-time"`
	By     string            `json:"by,omitempty" readOnly:"true"`
}

func trialViewOf(t *dunlin.Trial) *trialView {
	if t == nil {
		return nil
	}
	return &trialView{ID: t.ID, Hash: t.Hash.String(), Kind: t.Kind, Share: t.Share, Labels: t.Labels, Gates: t.Gates, Since: t.Since, By: t.By}
}

// runningTrialView is a trial with what came of it so far.
type runningTrialView struct {
	Trial   *trialView         `json:"trial"`
	Counts  dunlin.TrialCounts `json:"counts"`
	Missing int                `json:"missing,omitempty" doc:"Nodes that did not answer: the counts lack theirs"`
}

func versionsOf(p *dunlin.Plugin) []versionOfPluginView {
	all := make([]versionOfPluginView, 0, len(p.Versions))
	for i := range p.Versions {
		v := &p.Versions[i]
		w := versionOfPluginView{Hash: v.Hash.String(), Version: v.Version, Active: v.Hash == p.Hash, Bytes: v.Bytes, Language: v.Language,
			Manifest: v.Manifest, Report: v.Report, Source: v.Source, By: v.By, At: v.At, Banned: v.Banned}
		for _, s := range v.Signatures {
			w.Signatures = append(w.Signatures, signatureView{s.Key, s.Comment})
		}
		all = append(all, w)
	}
	return all
}

func activationsOf(p *dunlin.Plugin) []activationView {
	all := make([]activationView, 0, len(p.Activations))
	for _, a := range p.Activations {
		v := activationView{Hash: a.Hash.String(), At: a.At, By: a.By, Reason: a.Reason}
		if a.From != (dunlin.ModuleHash{}) {
			v.From = a.From.String()
		}
		all = append(all, v)
	}
	return all
}

func (a *api) registerVersions() {
	operation(a, huma.Operation{OperationID: "activate-plugin", Method: http.MethodPost, Path: "/v1/plugins/{name}/activate", Tags: []string{"plugins"},
		Summary: "Make a version the active one", Description: "It is started with the configurations of the domains that run the plugin, and with copies of " +
			"their devices' states, before. A candidate of a trial is promoted by this."}, a.activatePlugin)
	operation(a, huma.Operation{OperationID: "rollback-plugin", Method: http.MethodPost, Path: "/v1/plugins/{name}/rollback", Tags: []string{"plugins"},
		Summary: "Make the version that was active before the active one again"}, a.rollbackPlugin)
	operation(a, huma.Operation{OperationID: "put-trial", Method: http.MethodPut, Path: "/v1/plugins/{name}/trial", Tags: []string{"plugins"},
		Summary: "Run a candidate beside the active version, as a shadow or a canary"}, a.putTrial)
	operation(a, huma.Operation{OperationID: "end-trial", Method: http.MethodDelete, Path: "/v1/plugins/{name}/trial", Tags: []string{"plugins"},
		Summary: "Take a candidate back"}, a.endTrial)
	question(a, huma.Operation{OperationID: "get-trial", Method: http.MethodGet, Path: "/v1/plugins/{name}/trial", Tags: []string{"plugins"},
		Summary: "What the candidate and the active version did since the trial began"}, a.getTrial)
	question(a, huma.Operation{OperationID: "get-module", Method: http.MethodGet, Path: "/v1/plugins/{name}/modules/{version}", Tags: []string{"plugins"},
		Summary: "Download a version's module"}, a.getModule)
}

// pluginNamed returns a plugin as far as the path names one.
func (a *api) pluginNamed(ctx context.Context, c *call, name string) (*dunlin.Plugin, error) {
	if a.g.deps.Plugins == nil {
		return nil, fmt.Errorf("%w: this node keeps no versions of plugins", dunlin.ErrNotFound)
	}
	if err := dunlin.ValidatePluginName(name); err != nil {
		return nil, err
	}
	return a.g.deps.Registrar.Plugin(ctx, c.tenant(), name)
}

// findVersion finds a version by its hash, the beginning of it, or its semantic version.
func findVersion(p *dunlin.Plugin, want string) (*dunlin.PluginVersion, error) {
	var found []*dunlin.PluginVersion
	for i := range p.Versions {
		v := &p.Versions[i]
		if v.Version != "" && v.Version == strings.TrimPrefix(want, "v") || len(want) >= 6 && strings.HasPrefix(v.Hash.String(), strings.ToLower(want)) {
			found = append(found, v)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("%w: plugin %s has no version %s; name it by its semantic version, or by at least 6 digits of its hash",
			dunlin.ErrNotFound, p.Name, quoted(want))
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%w: plugin %s has %d versions %s; name one by its hash", dunlin.ErrConflict, p.Name, len(found), quoted(want))
}

type reasonBody struct {
	Reason string `json:"reason,omitempty" maxLength:"1024" doc:"Kept with the activation"`
}

type activateInput struct {
	PluginPath
	Condition
	Body struct {
		Version string `json:"version" minLength:"1" doc:"Hash, prefix of it, or semantic version"`
		Reason  string `json:"reason,omitempty" maxLength:"1024" doc:"Kept with the activation"`
	}
}

func (a *api) activatePlugin(ctx context.Context, c *call, in *activateInput) (*taggedOutput[pluginView], error) {
	p, err := a.pluginNamed(ctx, c, in.Name)
	if err != nil {
		return nil, err
	}
	v, err := findVersion(p, in.Body.Version)
	if err != nil {
		return nil, err
	}
	return a.activate(ctx, c, p, &in.Condition, dunlin.Activation{Hash: v.Hash, By: c.principal.ID, Reason: in.Body.Reason})
}

type rollbackInput struct {
	PluginPath
	Condition
	Body *reasonBody
}

func (a *api) rollbackPlugin(ctx context.Context, c *call, in *rollbackInput) (*taggedOutput[pluginView], error) {
	p, err := a.pluginNamed(ctx, c, in.Name)
	if err != nil {
		return nil, err
	}
	reason := "rolled back"
	if in.Body != nil && in.Body.Reason != "" {
		reason = in.Body.Reason
	}
	for _, h := range p.Previous {
		i := slices.IndexFunc(p.Versions, func(v dunlin.PluginVersion) bool { return v.Hash == h })
		if i >= 0 && p.Versions[i].Banned == "" {
			return a.activate(ctx, c, p, &in.Condition, dunlin.Activation{Hash: h, By: c.principal.ID, Reason: reason})
		}
	}
	return nil, fmt.Errorf("%w: plugin %s has no version to go back to", dunlin.ErrConflict, in.Name)
}

func (a *api) activate(ctx context.Context, c *call, p *dunlin.Plugin, cond *Condition, act dunlin.Activation) (*taggedOutput[pluginView], error) {
	revision, err := cond.revision(func() (uint64, error) { return p.Revision, nil })
	if err != nil {
		return nil, err
	}
	if p, err = a.g.deps.Plugins.Activate(ctx, c.tenant(), p.Name, act, revision); err != nil {
		return nil, err
	}
	return created(pluginViewOf(p), p.Revision), nil
}

type trialInput struct {
	PluginPath
	Condition
	Body trialView
}

func (a *api) putTrial(ctx context.Context, c *call, in *trialInput) (*taggedOutput[pluginView], error) {
	p, err := a.pluginNamed(ctx, c, in.Name)
	if err != nil {
		return nil, err
	}
	v, err := findVersion(p, in.Body.Hash)
	if err != nil {
		return nil, err
	}
	revision, err := in.revision(func() (uint64, error) { return p.Revision, nil })
	if err != nil {
		return nil, err
	}
	t := &dunlin.Trial{Hash: v.Hash, Kind: in.Body.Kind, Share: in.Body.Share, Labels: in.Body.Labels, Gates: in.Body.Gates, By: c.principal.ID}
	if p, err = a.g.deps.Plugins.SetTrial(ctx, c.tenant(), in.Name, t, "", revision); err != nil {
		return nil, err
	}
	return created(pluginViewOf(p), p.Revision), nil
}

func (a *api) endTrial(ctx context.Context, c *call, in *struct {
	PluginPath
	Condition
	Reason string `query:"reason" maxLength:"1024" doc:"Kept with the plugin"`
}) (*struct{}, error) {
	p, err := a.pluginNamed(ctx, c, in.Name)
	if err != nil {
		return nil, err
	}
	revision, err := in.revision(func() (uint64, error) { return p.Revision, nil })
	if err != nil {
		return nil, err
	}
	if p.Trial == nil {
		return nil, fmt.Errorf("%w: plugin %s has no trial", dunlin.ErrNotFound, in.Name)
	}
	reason := in.Reason
	if reason == "" {
		reason = "trial ended"
	}
	_, err = a.g.deps.Plugins.SetTrial(ctx, c.tenant(), in.Name, nil, reason, revision)
	return nil, err
}

func (a *api) getTrial(ctx context.Context, c *call, in *struct {
	PluginPath
	ReadInput
}) (*struct{ Body runningTrialView }, error) {
	p, err := a.pluginNamed(ctx, c, in.Name)
	if err != nil {
		return nil, err
	}
	if p.Trial == nil {
		return nil, fmt.Errorf("%w: plugin %s has no trial", dunlin.ErrNotFound, in.Name)
	}
	out := &struct{ Body runningTrialView }{runningTrialView{Trial: trialViewOf(p.Trial)}}
	if a.g.deps.Trials != nil {
		if out.Body.Counts, out.Body.Missing, err = a.g.deps.Trials.TrialCounts(ctx, c.tenant(), in.Name, p.Trial.ID); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (a *api) getModule(ctx context.Context, c *call, in *struct {
	PluginPath
	Version string `path:"version" doc:"Hash, prefix of it, or semantic version"`
	ReadInput
}) (*struct {
	ContentType string `header:"Content-Type"`
	Body        []byte
}, error) {
	p, err := a.pluginNamed(ctx, c, in.Name)
	if err != nil {
		return nil, err
	}
	v, err := findVersion(p, in.Version)
	if err != nil {
		return nil, err
	}
	module, err := a.g.deps.Plugins.Module(ctx, c.tenant(), in.Name, v.Hash)
	if err != nil {
		return nil, err
	}
	return &struct {
		ContentType string `header:"Content-Type"`
		Body        []byte
	}{"application/wasm", module}, nil
}

// settings are what an upload says besides the module.
func (in *putPluginInput) settings(by string, revision uint64) (dunlin.PluginSettings, error) {
	set := dunlin.PluginSettings{Name: in.Name, Activate: in.Activate, Key: in.Key, Source: in.Source, By: by, Reason: in.Reason, IfRevision: revision}
	if set.Source == "" {
		set.Source = "upload"
	}
	if in.Signature != "" {
		sig, err := base64.StdEncoding.DecodeString(in.Signature)
		if err != nil {
			return set, invalidValue("header.Dunlin-Signature", "the header is the .minisig file in base64", nil)
		}
		set.Signature = string(sig)
	}
	return set, nil
}
