package coap

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/dunlin-iot/dunlin"
)

const (
	gatewayPath = "d/gw/t?u=gw&k=gwpass"
	twoDevices  = `[{"bn":"urn:dev:ow:a:","n":"temp","v":1},{"bn":"urn:dev:ow:b:","n":"temp","v":2}]`
)

func gatewayRooms() *rooms {
	return &rooms{secrets: map[string]dunlin.Principal{
		"gw:gwpass": {Kind: dunlin.PrincipalGateway, Tenant: "default", ID: "gw", Domain: "plant"},
		"a:s3cret":  {Kind: dunlin.PrincipalDevice, Tenant: "default", ID: "a"},
	}}
}

// came renders the uplinks that came since the last call, with "?" for those that may repeat and the message id's number
// in order of appearance.
func came(r *rooms, ids map[uint64]int) string {
	var all []string
	for _, u := range r.got() {
		if ids[u.MessageID] == 0 {
			ids[u.MessageID] = len(ids) + 1
		}
		s := fmt.Sprintf("%s/%d", u.Device, ids[u.MessageID])
		if u.Flags != dunlin.FlagMayRepeat|dunlin.FlagExchange || u.Sender.ID == "gw" && (u.Input.Sender == "gw") == (u.Device == "gw") {
			s += "!"
		}
		all = append(all, s)
	}
	r.set(func() { r.uplinks = nil })
	return strings.Join(all, " ")
}

// TestPack: a gateway sends for several devices in one payload. There is one answer: 2.04 when all is committed, or the
// worst refusal, which names its device. A duplicate gets the same, also if the first request had to wait for its login.
func TestPack(t *testing.T) {
	var refusal atomic.Pointer[map[string]error]
	r := gatewayRooms()
	r.receipt = func(id string) *receipt { return &receipt{Receipt: dunlin.Receipt{Err: (*refusal.Load())[id]}} }
	g := serve(t, Config{Readers: 1}, r)
	for _, c := range []struct {
		name, path, body string
		refusal          map[string]error
		code             codes.Code
		text, came       string
	}{
		{"two devices", gatewayPath, twoDevices, nil, codes.Changed, "", "a/1 b/1"},
		{"its own too", gatewayPath, `[{"n":"load","v":1},{"bn":"urn:dev:ow:a:","n":"temp","v":1}]`, nil, codes.Changed, "", "gw/1 a/2"},
		{"a device of its own", "d/a/t?u=gw&k=gwpass", `[{"n":"temp","v":1}]`, nil, codes.Changed, "", "a/1"},
		{"one is forbidden", gatewayPath, twoDevices, map[string]error{"b": dunlin.ErrForbidden}, codes.Forbidden,
			"device b: not allowed (1 of 2 devices refused, the rest kept)", "a/1 b/1"},
		{"one is unknown", gatewayPath, twoDevices, map[string]error{"a": dunlin.ErrUnknownDevice}, codes.NotFound,
			"device a: unknown device (1 of 2 devices refused, the rest kept)", "a/1 b/1"},
		{"a bad record", gatewayPath, `[{"bn":"urn:dev:ow:a:","n":"temp"}]`, nil, codes.BadRequest,
			"bad payload: application/senml+json: byte 1: a record has no value", ""},
		{"a device may not", "d/a/t?k=s3cret", twoDevices, nil, codes.Forbidden,
			`not allowed: record "urn:dev:ow:b:temp" names another device ("b") than the one it was sent for`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			refusal.Store(&c.refusal)
			cl := dial(t, g)
			for _, how := range []string{"with its login", "known"} {
				a := cl.ask(post(c.path, c.body, senml))
				if a.Code != c.code || string(a.Payload) != c.text {
					t.Errorf("%s: got %s", how, show(a))
				}
				if got := came(r, map[uint64]int{}); got != c.came {
					t.Errorf("%s: uplinks %s, want %s", how, got, c.came)
				}
				cl.mid--
				if again := cl.ask(post(c.path, c.body, senml)); show(again) != show(a) {
					t.Errorf("%s: a duplicate got %s, before %s", how, show(again), show(a))
				}
				if got := came(r, map[uint64]int{}); got != "" && (c.refusal == nil || got != c.came) {
					t.Errorf("%s: uplinks of a duplicate: %s", how, got)
				}
			}
		})
	}
}

// TestPackWaits: the answer waits for the last device's commit.
func TestPackWaits(t *testing.T) {
	r := gatewayRooms()
	r.receipt = func(id string) *receipt { return &receipt{hold: id == "b"} }
	g := serve(t, Config{Readers: 1}, r)
	cl := dial(t, g)
	cl.ask(post("d/a/t?u=gw&k=gwpass", "1"))
	m := post(gatewayPath, twoDevices, senml)
	m.MessageID = 7
	cl.write(encode(t, m))
	cl.quiet()
	if n := r.commit(); n != 1 {
		t.Fatalf("%d uplinks waited", n)
	}
	if a := cl.must(); a.Code != codes.Changed || a.MessageID != 7 {
		t.Errorf("got %s", show(a))
	}
}

// TestPackAgain: after a 5.03 the gateway comes again, in another message and from another port. What was kept the first
// time is recognised by its message id; a payload that only looks the same, after a 2.04, is a new one.
func TestPackAgain(t *testing.T) {
	var idle atomic.Bool
	var now atomic.Int64
	r := gatewayRooms()
	r.receipt = func(id string) *receipt {
		if id != "b" || idle.Load() {
			return nil
		}
		return &receipt{Receipt: dunlin.Receipt{Err: dunlin.ErrOverloaded, RetryAfterSeconds: 2}}
	}
	now.Store(int64(testNow))
	g := serve(t, Config{Clock: func() dunlin.Time { return dunlin.Time(now.Load()) }}, r)
	ids := map[uint64]int{}
	ask := func(body string, code codes.Code, want string) {
		t.Helper()
		a := dial(t, g).ask(post(gatewayPath, body, senml))
		if a.Code != code || code == codes.ServiceUnavailable && uintOption(a, message.MaxAge) != 2 {
			t.Errorf("got %s", show(a))
		}
		if got := came(r, ids); got != want {
			t.Errorf("uplinks %s, want %s", got, want)
		}
	}
	ask(twoDevices, codes.ServiceUnavailable, "a/1 b/1")
	ask(twoDevices, codes.ServiceUnavailable, "a/1 b/1")
	ask(strings.Replace(twoDevices, "2", "3", 1), codes.ServiceUnavailable, "a/2 b/2")
	idle.Store(true)
	ask(twoDevices, codes.Changed, "a/1 b/1")
	ask(twoDevices, codes.Changed, "a/3 b/3")
	now.Store(int64(testNow.Add(dunlin.SeenAge + time.Second)))
	ask(strings.Replace(twoDevices, "2", "3", 1), codes.Changed, "a/4 b/4")
}

// TestUnfinishedIsBounded: however many packs are never sent again, the table stays within its bound.
func TestUnfinishedIsBounded(t *testing.T) {
	var table unfinished
	u := &dunlin.Uplink{DeviceKey: dunlin.DeviceKey{Tenant: "default", Device: "gw"}}
	u.MessageID = 1
	for i := range unfinishedMax + 100 {
		u.Received = testNow + dunlin.Time(i)
		table.answered(u, uint64(i), true)
	}
	if n := table.n.Load(); n != unfinishedMax || len(table.mu.packs) != unfinishedMax {
		t.Errorf("%d packs", n)
	}
	u.Received = u.Received.Add(dunlin.SeenAge + time.Second)
	table.answered(u, 1<<40, true)
	if n := table.n.Load(); n != 1 {
		t.Errorf("%d packs are left of old ones", n)
	}
}
