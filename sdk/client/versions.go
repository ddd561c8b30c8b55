package client

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"

	"github.com/dunlin-iot/dunlin"
)

// BringVersion uploads a module as a version of the plugin s.Name, and makes it the active one if s.Activate. Of a refused
// module, Error.Check names the check. Who brings it is the node's to say, not s.By.
func (c *Client) BringVersion(ctx context.Context, s dunlin.PluginSettings, module []byte) (*dunlin.Plugin, error) {
	q := request{method: http.MethodPut, path: path("v1", "plugins", s.Name), query: values("reason", s.Reason, "source", s.Source),
		header: conditional(s.IfRevision), body: module, again: s.IfRevision == dunlin.AnyRevision}
	q.header.Set("Content-Type", "application/wasm")
	if s.Signature != "" {
		q.header.Set("Dunlin-Signature", base64.StdEncoding.EncodeToString([]byte(s.Signature)))
	}
	if s.Key != "" {
		q.header.Set("Dunlin-Key", s.Key)
	}
	if !s.Activate {
		q.query.Set("activate", "false")
	}
	p := new(dunlin.Plugin)
	if _, err := c.do(ctx, q, p); err != nil {
		return nil, err
	}
	return p, nil
}

// ActivatePlugin makes a version the active one: by its hash, at least 6 digits of it, or its semantic version.
func (c *Client) ActivatePlugin(ctx context.Context, name, version, reason string) (*dunlin.Plugin, error) {
	return post[dunlin.Plugin](ctx, c, path("v1", "plugins", name, "activate"), map[string]string{"version": version, "reason": reason})
}

// RollbackPlugin makes the version that was active before the active one again.
func (c *Client) RollbackPlugin(ctx context.Context, name, reason string) (*dunlin.Plugin, error) {
	return post[dunlin.Plugin](ctx, c, path("v1", "plugins", name, "rollback"), map[string]string{"reason": reason})
}

// TrialSettings is what a person says when beginning a trial. Version is a hash, at least 6 digits of it, or a semantic version.
type TrialSettings struct {
	Version string            `json:"hash"`
	Kind    dunlin.TrialKind  `json:"kind"`
	Share   float64           `json:"share,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Gates   dunlin.Gates      `json:"gates,omitzero"`
}

// BeginTrial runs a candidate beside a plugin's active version.
func (c *Client) BeginTrial(ctx context.Context, name string, t TrialSettings) (*dunlin.Plugin, error) {
	return put[dunlin.Plugin](ctx, c, path("v1", "plugins", name, "trial"), t, dunlin.AnyRevision)
}

// EndTrial takes a candidate back.
func (c *Client) EndTrial(ctx context.Context, name, reason string) error {
	_, err := c.do(ctx, request{method: http.MethodDelete, path: path("v1", "plugins", name, "trial"), query: values("reason", reason),
		header: conditional(dunlin.AnyRevision)}, nil)
	return err
}

// RunningTrial is a trial with what its two versions did so far. Missing nodes did not answer: the counts lack theirs.
type RunningTrial struct {
	Trial   dunlin.Trial       `json:"trial"`
	Counts  dunlin.TrialCounts `json:"counts"`
	Missing int                `json:"missing,omitempty"`
}

// Trial says how a plugin's trial goes.
func (c *Client) Trial(ctx context.Context, name string) (*RunningTrial, error) {
	return get[RunningTrial](ctx, c, path("v1", "plugins", name, "trial"), nil)
}

// Module downloads a version's module: by its hash, at least 6 digits of it, or its semantic version.
func (c *Client) Module(ctx context.Context, name, version string) ([]byte, error) {
	var module []byte
	_, err := c.do(ctx, request{method: http.MethodGet, path: path("v1", "plugins", name, "modules", version), again: true}, &module)
	return module, err
}

// post sends a document and reads what became of it.
func post[T any](ctx context.Context, c *Client, path string, doc any) (*T, error) {
	body, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	out := new(T)
	if _, err := c.do(ctx, request{method: http.MethodPost, path: path, header: http.Header{"Content-Type": {"application/json"}}, body: body}, out); err != nil {
		return nil, err
	}
	return out, nil
}
