package httpapi

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/sdk/client"
)

// TestClientAndGatewayAgree takes every call of sdk/client to a real gateway.
func TestClientAndGatewayAgree(t *testing.T) {
	b := newBed(t)
	url, stop := b.serve()
	defer stop()
	c, err := client.New(url, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := t.Context()
	check := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	check("ready", c.Ready(ctx))
	v, err := c.Version(ctx)
	check("version", err)
	if v.Version != "test" {
		t.Errorf("version %+v", v)
	}

	dev, err := c.PutDevice(ctx, dunlin.Device{ID: "d1", Domain: "a", Labels: map[string]string{"k": "v"}}, 0)
	check("put device", err)
	if _, err := c.PutDevice(ctx, *dev, 0); !errors.Is(err, dunlin.ErrPrecondition) {
		t.Errorf("creating it twice: %v", err)
	}
	dev, err = c.PutDevice(ctx, *dev, dev.Revision)
	check("put it back", err)
	if got, err := c.Device(ctx, "d1"); err != nil || got.Revision != 2 || got.Labels["k"] != "v" || got.UpdatedAt != testNow {
		t.Errorf("got %+v, %v", got, err)
	}
	for i := range 250 {
		id := fmt.Sprintf("x%03d", i)
		b.devices[key(id)] = dunlin.Device{Tenant: dunlin.DefaultTenant, ID: dunlin.DeviceID(id), Domain: "a", Revision: 1}
	}
	n := 0
	for d, err := range c.Devices(ctx, client.DevicesQuery{Domain: "a", Prefix: "x"}) {
		check("devices", err)
		if want := fmt.Sprintf("x%03d", n); string(d.ID) != want {
			t.Fatalf("device %d is %s", n, d.ID)
		}
		n++
	}
	if n != 250 {
		t.Errorf("%d devices", n)
	}
	check("delete device", c.DeleteDevice(ctx, "d1", dev.Revision))
	if _, err := c.Device(ctx, "d1"); !errors.Is(err, dunlin.ErrNotFound) {
		t.Errorf("deleted: %v", err)
	}

	_, err = c.PushPlugin(ctx, "p", []byte("\x00asm"), 0)
	check("push", err)
	if _, err := c.PushPlugin(ctx, "p", []byte("ELF"), dunlin.AnyRevision); !errors.Is(err, dunlin.ErrInvalid) {
		t.Errorf("bad module: %v", err)
	} else if e, _ := errors.AsType[*client.Error](err); e.Check != "parse" {
		t.Errorf("bad module: %+v", e)
	}
	dom, err := c.PutDomain(ctx, dunlin.Domain{ID: "a", Owner: "me", SkewMax: 1e9, Pipeline: []dunlin.PluginUse{{Plugin: "p", Config: []byte(`{"limit":8}`)}}}, 0)
	check("put domain", err)
	dom, err = c.PutDomain(ctx, *dom, dom.Revision)
	check("put it back", err)
	_, err = c.ApplyDomain(ctx, "a", "application/yaml", []byte("owner: you"), dom.Revision)
	check("apply", err)
	for d, err := range c.Domains(ctx) {
		check("domains", err)
		if d.Owner != "you" || d.Revision != 3 {
			t.Errorf("got %+v", d)
		}
	}
	check("delete plugin", c.DeletePlugin(ctx, "p", dunlin.AnyRevision))
	for p, err := range c.Plugins(ctx) {
		t.Errorf("left: %+v, %v", p, err)
	}

	secret, err := c.PutCredential(ctx, dunlin.Credential{Kind: dunlin.CredentialDevice, ID: "d1", Domain: "a"}, "")
	check("credential", err)
	if secret != "made-by-the-node" {
		t.Errorf("secret %q", secret)
	}
	for cr, err := range c.Credentials(ctx) {
		check("credentials", err)
		if cr.ID != "d1" || cr.Hash != "" {
			t.Errorf("got %+v", cr)
		}
	}
	check("delete credential", c.DeleteCredential(ctx, dunlin.CredentialDevice, "d1"))
}

// TestClientReads covers telemetry both ways, with the numbers that JSON lacks.
func TestClientReads(t *testing.T) {
	b := newBed(t)
	url, stop := b.serve()
	defer stop()
	c, err := client.New(url, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := t.Context()
	r, err := c.Send(ctx, "d1", "application/senml+json", []byte(`[{"n":"t","v":1}]`), "k")
	if err != nil || r.Seq != 1 {
		t.Errorf("send: %+v, %v", r, err)
	}
	if r, err = c.Send(ctx, "d1", "application/senml+json", []byte(`[{"n":"t","v":1}]`), "k"); err != nil || !r.Duplicate {
		t.Errorf("again: %+v, %v", r, err)
	}
	results, err := c.SendBatch(ctx, []client.Item{{Device: "d1", Payload: []byte(`{"t":1}`)}, {Device: "d2", Format: "application/octet-stream", Bytes: []byte{1}},
		{Device: "-"}}, "")
	if err != nil || len(results) != 3 || results[0].Seq != 2 || results[1].Seq != 1 || !errors.Is(results[2].Problem, dunlin.ErrBadPayload) {
		t.Errorf("batch: %+v, %v", results, err)
	}
	b.readings = func(q dunlin.ReadingsQuery) (*dunlin.ReadingsPage, error) {
		if q.Bucket > 0 {
			return &dunlin.ReadingsPage{Buckets: []dunlin.Bucket{{Metric: "t", Start: testNow, Count: 1, Min: math.NaN(), Max: math.Inf(1), Mean: 1.5}}}, nil
		}
		p := &dunlin.ReadingsPage{Rows: []dunlin.Record{{Metric: "t", Unit: "Cel", Time: testNow, Kind: dunlin.Number, Num: 4.25}}}
		if q.Cursor == "" {
			p.Next = "more/+="
		}
		return p, nil
	}
	var got []string
	for r, err := range c.Readings(ctx, "d1", client.ReadingsQuery{From: "-1h", Metrics: []string{"t"}}) {
		got = append(got, fmt.Sprint(r, err))
	}
	if want := "{t Cel 2026-03-01T12:00:00Z 4.25} <nil>"; !slices.Equal(got, []string{want, want}) {
		t.Errorf("readings: %v", got)
	}
	for bu, err := range c.Buckets(ctx, "d1", client.ReadingsQuery{Bucket: "5m"}) {
		if err != nil || !math.IsNaN(float64(bu.Min)) || !math.IsInf(float64(bu.Max), 1) || bu.Mean != 1.5 {
			t.Errorf("bucket %+v, %v", bu, err)
		}
	}
	alert := dunlin.Alert{Device: "d1", Rule: "hot", Severity: dunlin.Major, State: dunlin.AlertRaised, Value: new(math.Inf(1)), RaisedAt: testNow, At: testNow}
	b.twins[key("d1")] = dunlin.Twin{Device: "d1", Version: 3, Reported: map[string]dunlin.Reported{"t": {Value: 4.25, At: testNow}}, Alerts: []dunlin.Alert{alert},
		Plugins: []dunlin.PluginState{{Stage: 0, State: []byte("s")}}}
	if tw, err := c.State(ctx, "d1"); err != nil || tw.Reported["t"].Value != 4.25 || tw.Alerts[0].Severity != dunlin.Major || string(tw.Plugins[0].State) != "s" {
		t.Errorf("state %+v, %v", tw, err)
	}
	b.alerts = []dunlin.Alert{alert}
	for a, err := range c.Alerts(ctx, client.AlertsQuery{Device: "d1", Active: true, Severity: "major", State: "raised"}) {
		if err != nil || !math.IsInf(float64(*a.Value), 1) || a.ID != "d1/hot/0" {
			t.Errorf("alert %+v, %v", a, err)
		}
	}
	b.dead = []dunlin.DeadLetter{{DeviceKey: key("d1"), Reason: "fuel", At: testNow}}
	for d, err := range c.DeadLetters(ctx, "d1", 10) {
		if err != nil || d.Reason != "fuel" {
			t.Errorf("dead letter %+v, %v", d, err)
		}
	}
}

// TestClientFollows restarts the gateway under an open event stream: the client sees each event once.
func TestClientFollows(t *testing.T) {
	b := newBed(t)
	url, stop := b.serve()
	c, err := client.New(url, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	add := func(n int) {
		b.feed.add(&dunlin.Entry{Shard: dunlin.ShardID(n % 4), Changes: []dunlin.Change{change("d", uint64(2*n), 2)}})
	}
	add(1)
	var got []uint64
	for ev, err := range c.Events(ctx, client.EventsQuery{From: dunlin.Cursor{1, 1, 1, 1}.String(), Types: []string{"reading"}}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, ev.Reading.Seq)
		switch len(got) {
		case 3: // in the middle of an entry
			addr := b.g.Addr().String()
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			next := newBed(t, func(c *Config) { c.Addr = addr })
			next.g.deps.Feed = b.feed
			_, stop = next.serve()
			add(4)
		case 2:
			add(2)
		case 4:
			add(3)
		case 8:
			cancel()
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	slices.Sort(got)
	if !slices.Equal(got, []uint64{1, 2, 3, 4, 5, 6, 7, 8}) {
		t.Errorf("got %v", got)
	}
}
