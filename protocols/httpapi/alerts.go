package httpapi

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dunlin-iot/dunlin"
)

func (a *api) registerAlerts() {
	question(a, huma.Operation{OperationID: "list-alerts", Method: http.MethodGet, Path: "/v1/alerts", Tags: []string{"alerts"},
		Summary: "List alerts, newest transition first"},
		func(ctx context.Context, c *call, in *AlertsInput) (*listOutput[alertView], error) {
			return a.g.alerts(ctx, c, in, "")
		})
	question(a, huma.Operation{OperationID: "list-device-alerts", Method: http.MethodGet, Path: "/v1/devices/{id}/alerts", Tags: []string{"alerts"},
		Summary: "List a device's alerts, newest transition first"},
		func(ctx context.Context, c *call, in *struct {
			DevicePath
			AlertsInput
		}) (*listOutput[alertView], error) {
			return a.g.alerts(ctx, c, &in.AlertsInput, dunlin.DeviceID(in.ID))
		})
	question(a, huma.Operation{OperationID: "list-deadletters", Method: http.MethodGet, Path: "/v1/deadletters", Tags: []string{"plugins"},
		Summary: "List inputs that a plugin failed on, newest first"},
		func(ctx context.Context, c *call, in *struct {
			ReadInput
			Device string `query:"device" doc:"Only this device's"`
			Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
		}) (*listOutput[deadLetterView], error) {
			found, err := a.g.deps.Inspector.DeadLetters(ctx, dunlin.DeadLettersQuery{Tenant: c.tenant(), Device: dunlin.DeviceID(in.Device), Limit: in.Limit})
			if err != nil {
				return nil, err
			}
			items := make([]deadLetterView, len(found.Letters))
			for i := range found.Letters {
				items[i] = deadLetterViewOf(&found.Letters[i])
			}
			return page(items, "/v1/deadletters", nil, "").lacking(found.Missing), nil
		})
}

func (g *Gateway) alerts(ctx context.Context, c *call, in *AlertsInput, dev dunlin.DeviceID) (*listOutput[alertView], error) {
	q := dunlin.AlertsQuery{Tenant: c.tenant(), Device: dev, Domain: dunlin.DomainID(in.Domain), Active: in.Active, Limit: in.Limit, Cursor: in.Cursor.s}
	if in.State != "" {
		if err := q.State.UnmarshalText([]byte(in.State)); err != nil {
			return nil, err
		}
	}
	if in.Severity != "" {
		if err := q.Severity.UnmarshalText([]byte(in.Severity)); err != nil {
			return nil, err
		}
	}
	found, err := g.deps.Inspector.Alerts(ctx, q)
	if err != nil {
		return nil, err
	}
	query := url.Values{"state": {in.State}, "severity": {in.Severity}, "domain": {in.Domain}, "limit": {strconv.Itoa(in.Limit)}}
	if in.Active {
		query.Set("active", "true")
	}
	return page(alertViewsOf(found.Alerts), c.path, in.Read.again(query), found.Next).lacking(found.Missing), nil
}
