package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"gopkg.in/yaml.v3"
)

// documents are /openapi.json and /openapi.yaml, made once. huma's own routes make theirs on first use, unguarded against
// a second request at the same time, and its /docs loads scripts from a CDN; so neither is on.
type documents struct{ json, yaml []byte }

// api is what the files with operations register on.
type api struct {
	g    *Gateway
	huma huma.API
	reg  huma.Registry
}

// registerAPI registers every operation that huma serves, describes those that it doesn't, and makes the documents.
func (g *Gateway) registerAPI(reg *registration) {
	schemas := huma.NewMapRegistry("#/components/schemas/", func(t reflect.Type, hint string) string {
		return strings.TrimSuffix(huma.DefaultSchemaNamer(t, hint), "View")
	})
	cfg := huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{Title: "dunlin", Version: "v1", License: &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
				Description: "Devices' state, history and alerts; ingest; domains and plugins. See docs/protocols/http.md."},
			Components: &huma.Components{Schemas: schemas, SecuritySchemes: map[string]*huma.SecurityScheme{
				"bearer": {Type: "http", Scheme: "bearer", Description: "An application's, operator's or gateway's token"},
				"basic":  {Type: "http", Scheme: "basic", Description: "A device's or user's name and password"},
			}},
			Security: []map[string][]string{{"bearer": {}}, {"basic": {}}},
		},
		Formats: map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat,
			"application/yaml": {Marshal: marshalNothing, Unmarshal: unmarshalYAML}, "application/x-yaml": {Marshal: marshalNothing, Unmarshal: unmarshalYAML},
			"text/yaml": {Marshal: marshalNothing, Unmarshal: unmarshalYAML}},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
		Transformers:                 []huma.Transformer{transformProblem},
	}
	a := &api{g: g, huma: humago.New(reg, cfg), reg: schemas}
	a.registerDevices()
	a.registerReadings()
	a.registerAlerts()
	a.registerExplain()
	a.registerLetters()
	a.describeBacktests()
	a.registerCommands()
	a.registerDomains()
	a.registerPlugins()
	a.registerVersions()
	a.registerCredentials()
	a.registerCluster()
	a.registerVersion()
	a.describeRaw()
	delete(schemas.Map(), "ErrorModel") // huma's error; transformProblem makes ours of it
	doc := a.huma.OpenAPI()
	var err error
	if g.openAPI.json, err = doc.MarshalJSON(); err == nil {
		g.openAPI.yaml, err = doc.YAML()
	}
	if err != nil {
		reg.errs = append(reg.errs, fmt.Errorf("openapi: %w", err))
	}
	reg.raw("GET /openapi.json", g.serveDocument("application/openapi+json", &g.openAPI.json))
	reg.raw("GET /openapi.yaml", g.serveDocument("application/openapi+yaml", &g.openAPI.yaml))
}

func (g *Gateway) serveDocument(contentType string, doc *[]byte) rawHandler {
	return func(c *call, r *http.Request) {
		c.Header().Set("Content-Type", contentType)
		c.Header().Set("Cache-Control", "no-cache")
		_, _ = c.Write(*doc)
	}
}

// transformProblem replaces huma's errors by ours.
func transformProblem(ctx huma.Context, _ string, v any) (any, error) {
	if m, ok := v.(*huma.ErrorModel); ok {
		if m.Status == http.StatusRequestEntityTooLarge {
			m.Detail = fmt.Sprintf("the body has more than the %d bytes that are taken", ctx.Operation().MaxBodyBytes-1)
		}
		return callOf(ctx.Context()).problem(ctx.Context(), fromHuma(m)), nil
	}
	return v, nil
}

// operation registers one operation with huma. Errors of h become problems here, so that no handler need think of it.
func operation[I, O any](a *api, op huma.Operation, h func(ctx context.Context, c *call, in *I) (*O, error)) {
	a.describe(&op)
	op.MaxBodyBytes++ // huma refuses a body of exactly the limit (v2.39.1)
	op.BodyReadTimeout = a.g.cfg.BodyTimeout
	huma.Register(a.huma, op, func(ctx context.Context, in *I) (*O, error) {
		c := callOf(ctx)
		out, err := h(ctx, c, in)
		if err != nil {
			return nil, c.problem(ctx, err)
		}
		return out, nil
	})
}

// describe completes an operation's documentation by what all have in common.
func (a *api) describe(op *huma.Operation) {
	if op.MaxBodyBytes == 0 {
		op.MaxBodyBytes = int64(a.g.cfg.DocumentBytesMax)
	}
	if op.Responses == nil {
		op.Responses = map[string]*huma.Response{}
	}
	op.Responses["default"] = a.problemResponse("Problem")
	rt := a.g.routes[op.Method+" "+op.Path]
	if rt == nil {
		return // registration.raw will tell
	}
	if rt.rule == rulePublic {
		op.Security = []map[string][]string{}
	}
	op.Description = strings.TrimSpace(op.Description + "\n\nWho: " + rt.rule.String() + ".")
}

func (a *api) problemResponse(description string) *huma.Response {
	schema := a.reg.Schema(reflect.TypeFor[Problem](), true, "Problem")
	return &huma.Response{Description: description, Content: map[string]*huma.MediaType{"application/problem+json": {Schema: schema}}}
}

// schemaOf is a reference to a type's schema.
func schemaOf[T any](a *api) *huma.Schema {
	t := reflect.TypeFor[T]()
	return a.reg.Schema(t, true, t.Name())
}

// alsoYAML documents that an operation's body may be YAML as well.
func (a *api) alsoYAML(path string) {
	body := a.huma.OpenAPI().Paths[path].Put.RequestBody
	body.Content["application/yaml"] = &huma.MediaType{Schema: body.Content["application/json"].Schema}
}

// marshalNothing stands where huma wants a marshaler; Accept never reaches it, so it only ever answers JSON.
func marshalNothing(io.Writer, any) error { return fmt.Errorf("answers are JSON") }

// unmarshalYAML reads YAML as the JSON that it stands for, so that one set of tags and rules serves both.
func unmarshalYAML(b []byte, v any) error {
	var doc any
	dec := yaml.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&doc); err != nil {
		return fmt.Errorf("YAML: %w", err)
	}
	if dec.Decode(new(any)) != io.EOF {
		return fmt.Errorf("YAML: more than one document; send one a request")
	}
	asJSON, err := json.Marshal(doc)
	if err != nil {
		return fmt.Errorf("YAML: %w", err) // a map key that is no string, or .nan
	}
	return json.Unmarshal(asJSON, v)
}

// describeRaw documents the operations that plain handlers serve.
func (a *api) describeRaw() {
	text := func(name, in, description string) *huma.Param {
		return &huma.Param{Name: name, In: in, Description: description, Schema: &huma.Schema{Type: huma.TypeString}, Required: in == "path"}
	}
	payloads := map[string]*huma.MediaType{}
	for _, mt := range []string{"application/senml+json", "application/senml+cbor", "application/json", "application/cbor", "text/plain", "application/octet-stream"} {
		payloads[mt] = &huma.MediaType{}
	}
	a.add(huma.Operation{OperationID: "send-telemetry", Method: http.MethodPost, Path: "/v1/devices/{id}/t", Tags: []string{"ingest"},
		Summary: "Send one uplink",
		Description: "Answers when the uplink, what the plugins made of it and the device's new state are committed. A gateway's SenML pack may have " +
			"records of other devices, each under its URN: it is answered when all of them are committed, or with the worst refusal.",
		Parameters: []*huma.Param{text("id", "path", "Device"), text("Idempotency-Key", "header",
			"Equal for a repetition of the same uplink and unlike otherwise; a repetition counts once")},
		RequestBody: &huma.RequestBody{Required: true, Content: payloads},
		Responses:   map[string]*huma.Response{"200": jsonResponse("Committed", schemaOf[receiptView](a))}})
	a.add(huma.Operation{OperationID: "answer-command", Method: http.MethodPost, Path: "/v1/devices/{id}/c/{command}", Tags: []string{"commands"},
		Summary: "Answer a command as its device",
		Description: "Answers when the answer and what the plugins made of it are committed. A command takes one answer, until its deadline; " +
			"404: it waits for none.",
		Parameters: []*huma.Param{text("id", "path", "Device"), text("command", "path", "The command's id"), text("Idempotency-Key", "header",
			"Equal for a repetition of the same answer; a repetition is answered as the first was")},
		RequestBody: &huma.RequestBody{Content: payloads},
		Responses:   map[string]*huma.Response{"200": jsonResponse("Committed", schemaOf[receiptView](a))}})
	batches := map[string]*huma.MediaType{"application/senml+json": {}, "application/senml+cbor": {},
		"application/json":     {Schema: &huma.Schema{Type: huma.TypeArray, Items: schemaOf[jsonItem](a)}},
		"application/x-ndjson": {Schema: schemaOf[jsonItem](a)}}
	a.add(huma.Operation{OperationID: "send-batch", Method: http.MethodPost, Path: "/v1/ingest", Tags: []string{"ingest"},
		Summary: "Send uplinks of many devices",
		Description: "Each item has its own result. 200: all were kept. 207: some or all were not; see each item. " +
			"A body that does not parse is refused as a whole.",
		Parameters:  []*huma.Param{text("Idempotency-Key", "header", "Of the batch; an item's place in it is added. An item's own id goes first")},
		RequestBody: &huma.RequestBody{Required: true, Content: batches},
		Responses: map[string]*huma.Response{"200": jsonResponse("All kept", schemaOf[batchView](a)),
			"207": jsonResponse("Not all kept", schemaOf[batchView](a))}})
	a.add(huma.Operation{OperationID: "follow-events", Method: http.MethodGet, Path: "/v1/events", Tags: []string{"events"},
		Summary: "Follow what is committed, as server-sent events",
		Description: "Events reading, alert, command, publication and device; docs/protocols/http.md has their data. An event's id is where to resume: " +
			"send it as Last-Event-ID and the stream goes on exactly behind it. A last event named error carries a problem.",
		Parameters: []*huma.Param{text("device", "query", "Only this device"), text("domain", "query", "Only this domain"),
			text("types", "query", "Comma-separated list of reading, alert, command, publication and device; default all"),
			text("cursor", "query", "As Last-Event-ID; default now"), text("Last-Event-ID", "header", "Id of the last event seen")},
		Responses: map[string]*huma.Response{"200": {Description: "Stream", Content: map[string]*huma.MediaType{"text/event-stream": {}}}}})
	for _, op := range []struct{ id, path, summary, mediaType string }{
		{"live", "/livez", "Whether the process answers", "text/plain"},
		{"ready", "/readyz", "Whether the node takes work; 503 says why not", "text/plain"},
		{"metrics", "/metrics", "Prometheus metrics", "text/plain"},
	} {
		a.add(huma.Operation{OperationID: op.id, Method: http.MethodGet, Path: op.path, Tags: []string{"node"}, Summary: op.summary,
			Responses: map[string]*huma.Response{"200": {Description: "OK", Content: map[string]*huma.MediaType{op.mediaType: {}}}}})
	}
}

func (a *api) add(op huma.Operation) {
	a.describe(&op)
	a.huma.OpenAPI().AddOperation(&op)
}

func jsonResponse(description string, schema *huma.Schema) *huma.Response {
	return &huma.Response{Description: description, Content: map[string]*huma.MediaType{"application/json": {Schema: schema}}}
}

// receiptView documents the answer to an uplink; appendReceipt writes it.
type receiptView struct {
	Seq       uint64              `json:"seq" doc:"The device's sequence number of this uplink, from 1; 0 for a duplicate whose number is no longer known"`
	Duplicate bool                `json:"duplicate" doc:"The uplink was committed before"`
	Created   bool                `json:"created,omitempty" doc:"The device registered itself with this uplink"`
	Devices   []deviceReceiptView `json:"devices,omitempty" nullable:"false" doc:"Of a gateway's payload with records of several devices: each one's receipt. seq is then the addressed device's, 0 if it has no records"`
}

// deviceReceiptView documents a part of the answer to a gateway's payload; appendDevices writes it.
type deviceReceiptView struct {
	Device    string `json:"device"`
	Seq       uint64 `json:"seq"`
	Duplicate bool   `json:"duplicate"`
	Created   bool   `json:"created,omitempty"`
}

// batchView documents the answer to a batch; batch.answer writes it.
type batchView struct {
	Items []struct {
		Device    string   `json:"device"`
		Seq       uint64   `json:"seq,omitempty"`
		Duplicate bool     `json:"duplicate,omitempty"`
		Created   bool     `json:"created,omitempty"`
		Problem   *Problem `json:"problem,omitempty" doc:"Why the item was not kept"`
	} `json:"items" nullable:"false" doc:"In the batch's order"`
	Kept   int `json:"kept"`
	Failed int `json:"failed"`
}
