package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dunlin-iot/dunlin"
)

// listOutput is a page of a list.
type listOutput[T any] struct {
	Link string `header:"Link" doc:"rel=next: the next page"`
	Body listView[T]
}

// page makes a list's answer; query is the request's, with what the next page must repeat.
func page[T any](items []T, path string, query url.Values, next string) *listOutput[T] {
	out := &listOutput[T]{Body: listView[T]{Items: items}}
	if out.Body.Items == nil {
		out.Body.Items = []T{}
	}
	if next != "" {
		out.Body.Next = nextLink(path, query, next)
		out.Link = "<" + out.Body.Next + `>; rel="next"`
	}
	return out
}

// nextLink is a relative link to the page behind cursor.
func nextLink(path string, query url.Values, cursor string) string {
	for k, v := range query {
		if len(v) == 0 || v[0] == "" {
			delete(query, k)
		}
	}
	query.Set("cursor", cursor)
	return (&url.URL{Path: path, RawQuery: query.Encode()}).String()
}

// taggedOutput is one thing with a revision.
type taggedOutput[T any] struct {
	Status       int
	ETag         string `header:"ETag"`
	CacheControl string `header:"Cache-Control"`
	Body         *T
}

// tagged makes the answer of a GET (304 if the client has this revision already) or PUT (ifNoneMatch empty).
func tagged[T any](v *T, revision uint64, ifNoneMatch string) *taggedOutput[T] {
	out := &taggedOutput[T]{Status: http.StatusOK, ETag: etagOf(revision), CacheControl: "no-cache", Body: v}
	if ifNoneMatch != "" && matchesETag(ifNoneMatch, out.ETag) {
		out.Status, out.Body = http.StatusNotModified, nil
	}
	return out
}

// created makes the answer of a PUT: 201 for the first revision.
func created[T any](v *T, revision uint64) *taggedOutput[T] {
	out := tagged(v, revision, "")
	if revision == 1 {
		out.Status = http.StatusCreated
	}
	return out
}

// notModified documents the 304 of a GET.
func notModified() map[string]*huma.Response {
	return map[string]*huma.Response{"304": {Description: "The client has this revision already"}}
}

// madeOrChanged documents the 201 of a PUT.
func madeOrChanged(a *api, schema *huma.Schema) map[string]*huma.Response {
	return map[string]*huma.Response{"201": jsonResponse("Created", schema)}
}

func (a *api) registerDevices() {
	reg := a.g.deps.Registrar
	question(a, huma.Operation{OperationID: "list-devices", Method: http.MethodGet, Path: "/v1/devices", Tags: []string{"devices"},
		Summary: "List devices by id"},
		func(ctx context.Context, c *call, in *struct {
			PageInput
			ReadInput
			Domain string `query:"domain" doc:"Only this domain's"`
			Prefix string `query:"prefix" maxLength:"64" doc:"Only ids that begin with this"`
		}) (*listOutput[deviceView], error) {
			found, err := reg.Devices(ctx, dunlin.DevicesQuery{Tenant: c.tenant(), Domain: dunlin.DomainID(in.Domain), Prefix: in.Prefix,
				Limit: in.Limit, Cursor: in.Cursor.s})
			if err != nil {
				return nil, err
			}
			items := make([]deviceView, len(found.Devices))
			for i := range found.Devices {
				items[i] = deviceViewOf(&found.Devices[i])
			}
			q := url.Values{"domain": {in.Domain}, "prefix": {in.Prefix}, "limit": {strconv.Itoa(in.Limit)}}
			return page(items, "/v1/devices", in.Read.again(q), found.Next).lacking(found.Missing), nil
		})

	question(a, huma.Operation{OperationID: "get-device", Method: http.MethodGet, Path: "/v1/devices/{id}", Tags: []string{"devices"},
		Summary: "Get a device's registration", Responses: notModified()},
		func(ctx context.Context, c *call, in *struct {
			DevicePath
			TagInput
			ReadInput
		}) (*taggedOutput[deviceView], error) {
			d, err := reg.Device(ctx, c.key(in.ID))
			if err != nil {
				return nil, err
			}
			return tagged(new(deviceViewOf(d)), d.Revision, in.IfNoneMatch), nil
		})

	operation(a, huma.Operation{OperationID: "put-device", Method: http.MethodPut, Path: "/v1/devices/{id}", Tags: []string{"devices"},
		Summary: "Register a device, or change its domain and labels", Responses: madeOrChanged(a, schemaOf[deviceView](a))}, a.putDevice)

	operation(a, huma.Operation{OperationID: "delete-device", Method: http.MethodDelete, Path: "/v1/devices/{id}", Tags: []string{"devices"},
		Summary: "Remove a device with its twin, history, alerts and timers"},
		func(ctx context.Context, c *call, in *struct {
			DevicePath
			Condition
		}) (*struct{}, error) {
			key := c.key(in.ID)
			revision, err := in.revision(func() (uint64, error) { return deviceRevision(ctx, reg, key) })
			if err != nil {
				return nil, err
			}
			return nil, reg.DeleteDevice(ctx, key, revision)
		})

	question(a, huma.Operation{OperationID: "get-device-state", Method: http.MethodGet, Path: "/v1/devices/{id}/state", Tags: []string{"devices"},
		Summary: "Get a device's twin: newest values, active alerts, plugins' state", Responses: notModified()},
		func(ctx context.Context, c *call, in *struct {
			DevicePath
			TagInput
			ReadInput
		}) (*taggedOutput[twinView], error) {
			t, err := a.g.deps.Inspector.Twin(ctx, c.key(in.ID))
			if err != nil {
				return nil, err
			}
			return tagged(twinViewOf(t), t.Version, in.IfNoneMatch), nil
		})
}

type putDeviceInput struct {
	DevicePath
	Condition
	Body deviceView
}

func (a *api) putDevice(ctx context.Context, c *call, in *putDeviceInput) (*taggedOutput[deviceView], error) {
	reg := a.g.deps.Registrar
	key := c.key(in.ID)
	if in.Body.ID != "" && in.Body.ID != key.Device {
		return nil, invalidValue("body.id", "the body's id is not the path's", string(in.Body.ID))
	}
	if err := in.Body.Domain.Validate(); err != nil {
		return nil, invalidValue("body.domain", err.Error(), string(in.Body.Domain))
	}
	if err := validLabels(in.Body.Labels); err != nil {
		return nil, err
	}
	revision, err := in.revision(func() (uint64, error) { return deviceRevision(ctx, reg, key) })
	if err != nil {
		return nil, err
	}
	d, err := reg.PutDevice(ctx, dunlin.Device{Tenant: key.Tenant, ID: key.Device, Domain: in.Body.Domain, Labels: in.Body.Labels}, revision)
	if err != nil {
		return nil, err
	}
	return created(new(deviceViewOf(d)), d.Revision), nil
}

func deviceRevision(ctx context.Context, reg dunlin.Registrar, key dunlin.DeviceKey) (uint64, error) {
	d, err := reg.Device(ctx, key)
	if err != nil {
		return 0, err
	}
	return d.Revision, nil
}

// Bounds of a device's labels, in bytes.
const (
	labelKeyBytesMax   = 64
	labelValueBytesMax = 256
)

func validLabels(labels map[string]string) error {
	for k, v := range labels {
		if k == "" || len(k) > labelKeyBytesMax || len(v) > labelValueBytesMax {
			return invalidValue("body.labels", fmt.Sprintf("label %s: a key has 1 to %d bytes, a value at most %d", quoted(k), labelKeyBytesMax, labelValueBytesMax), nil)
		}
	}
	return nil
}
