package httpapi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/payload"
)

// partial is a node in a cluster of which a part does not answer; it notes how fresh answers were to be.
type partial struct {
	*bed
	levels []string
	err    error
}

func (p *partial) note(ctx context.Context) []dunlin.MissingShard {
	p.levels = append(p.levels, dunlin.ReadLevelOf(ctx).String())
	return []dunlin.MissingShard{{Shard: 7, Reason: "node b does not answer"}}
}

func (p *partial) Twin(ctx context.Context, k dunlin.DeviceKey) (*dunlin.Twin, error) {
	p.note(ctx)
	if p.err != nil {
		return nil, p.err
	}
	return p.bed.Twin(ctx, k)
}

func (p *partial) Readings(ctx context.Context, q dunlin.ReadingsQuery) (*dunlin.ReadingsPage, error) {
	p.note(ctx)
	return &dunlin.ReadingsPage{Next: "abc"}, p.err
}

func (p *partial) Alerts(ctx context.Context, _ dunlin.AlertsQuery) (*dunlin.AlertsPage, error) {
	return &dunlin.AlertsPage{Next: "abc", Missing: p.note(ctx)}, p.err
}

func (p *partial) DeadLetters(ctx context.Context, _ dunlin.DeadLettersQuery) (*dunlin.DeadLettersPage, error) {
	return &dunlin.DeadLettersPage{Missing: p.note(ctx)}, p.err
}

func (p *partial) Devices(ctx context.Context, _ dunlin.DevicesQuery) (*dunlin.DevicesPage, error) {
	return &dunlin.DevicesPage{Next: "d1", Missing: p.note(ctx)}, p.err
}

func (p *partial) Domains(ctx context.Context, _ dunlin.Tenant) ([]dunlin.Domain, error) {
	p.note(ctx)
	return nil, p.err
}

func newPartial(t *testing.T) *partial {
	p := &partial{bed: newBed(t)}
	p.twins[key("d1")] = dunlin.Twin{Device: "d1", Version: 3}
	g, err := New(p.g.cfg, Deps{Ingestor: p, Inspector: p, Registrar: p, Auth: p.bed, Feed: p.feed, Decoder: payload.NewDecoder(), Plugins: p, Trials: p})
	if err != nil {
		t.Fatal(err)
	}
	p.bed.g = g
	return p
}

// TestReadLevel: the query says how fresh an answer must be, the rooms behind and the client are told, and pages go on with it.
func TestReadLevel(t *testing.T) {
	p := newPartial(t)
	for _, path := range []string{"/v1/devices/d1/state", "/v1/devices/d1/readings", "/v1/alerts", "/v1/devices/d1/alerts", "/v1/deadletters",
		"/v1/devices", "/v1/domains"} {
		for query, want := range map[string]string{"": "leader", "?read=leader": "leader", "?read=stale%3D10s": "stale=10s"} {
			p.levels = nil
			w := p.do("GET", path+query, "")
			body := p.want(w, 200)
			if fmt.Sprint(p.levels) != "["+want+"]" || w.Header().Get("Dunlin-Read") != want {
				t.Errorf("%s%s: asked at %v, Dunlin-Read %q", path, query, p.levels, w.Header().Get("Dunlin-Read"))
			}
			if next := parse[struct{ Next string }](t, body).Next; next != "" && strings.Contains(next, "read=stale%3D10s") != (want != "leader") {
				t.Errorf("%s%s: the next page is %s", path, query, next)
			}
		}
	}
	if w := p.do("GET", "/v1/devices/d1/state?read=soon", ""); w.Code != 422 || !strings.Contains(w.Body.String(), "stale=10s") {
		t.Errorf("read=soon: %d %s", w.Code, w.Body)
	}
}

// TestMissingShards: a list says what it lacks.
func TestMissingShards(t *testing.T) {
	p := newPartial(t)
	for _, path := range []string{"/v1/alerts", "/v1/devices/d1/alerts", "/v1/deadletters", "/v1/devices"} {
		body := p.want(p.do("GET", path, ""), 200)
		if !strings.Contains(body, `"missing":[{"shard":7,"reason":"node b does not answer"}]`) {
			t.Errorf("%s: %s", path, body)
		}
	}
}

// TestComeAgain: what another node, or nobody, owns for the moment is no fault of the client's, whoever says so.
func TestComeAgain(t *testing.T) {
	p := newPartial(t)
	for _, err := range []error{dunlin.ErrUnavailable, dunlin.ErrNotOwner, dunlin.ErrOverloaded, fmt.Errorf("x: %w", errors.Join(dunlin.ErrUnavailable, dunlin.ErrNotOwner))} {
		p.err = err
		for _, path := range []string{"/v1/devices/d1/state", "/v1/devices/d1/readings", "/v1/alerts", "/v1/deadletters", "/v1/devices", "/v1/domains"} {
			if w := p.do("GET", path, ""); w.Code != 503 || w.Header().Get("Retry-After") == "" {
				t.Errorf("%s: %v is %d, Retry-After %q", path, err, w.Code, w.Header().Get("Retry-After"))
			}
		}
		p.receipt = func(*dunlin.Uplink) (dunlin.Receipt, bool) {
			return dunlin.Receipt{Err: err, RetryAfterSeconds: 2}, true
		}
		w := p.do("POST", "/v1/devices/d1/t", `{"temperature":1}`, "Content-Type: application/json")
		if w.Code != 503 || w.Header().Get("Retry-After") != "2" {
			t.Errorf("an uplink: %v is %d, Retry-After %q", err, w.Code, w.Header().Get("Retry-After"))
		}
	}
}
