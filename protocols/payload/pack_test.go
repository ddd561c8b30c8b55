package payload_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/payload"
)

// asked is a Waiter that counts how often it is told.
type asked struct {
	times   int
	u       *dunlin.Uplink
	receipt dunlin.Receipt
}

func (a *asked) Done(u *dunlin.Uplink, r dunlin.Receipt) { a.times++; a.u, a.receipt = u, r }

// gateway makes the uplink of gateway gw-1's payload on its own topic.
func gateway(w dunlin.Waiter) *dunlin.Uplink {
	u := uplink("gw-1", dunlin.FormatSenMLJSON)
	u.Tenant = "acme"
	u.Sender = dunlin.Principal{Kind: dunlin.PrincipalGateway, Tenant: "acme", ID: "gw-1", Domain: "plant"}
	u.MessageID, u.Waiter, u.Tag = 7, w, 9
	return u
}

const threeDevices = `[{"bn":"urn:dev:ow:a:","n":"temp","v":1},{"bn":"urn:dev:ow:b:","n":"temp","v":2},{"bn":"","n":"load","v":3}]`

func chainOf(first *dunlin.Uplink) (all []*dunlin.Uplink) {
	for u := first; u != nil; u = u.Next {
		all = append(all, u)
	}
	return all
}

func devices(us []*dunlin.Uplink) string {
	var ids []string
	for _, u := range us {
		ids = append(ids, string(u.Device))
	}
	return strings.Join(ids, " ")
}

// Only a gateway may name other devices, and only then there is a pack.
func TestTake(t *testing.T) {
	d := payload.NewDecoder()
	for kind, want := range map[dunlin.PrincipalKind]bool{dunlin.PrincipalDevice: false, dunlin.PrincipalApplication: false,
		dunlin.PrincipalOperator: false, dunlin.PrincipalOpen: false, dunlin.PrincipalGateway: true} {
		u := gateway(nil)
		u.Sender.Kind = kind
		p, err := d.Take(u, []byte(threeDevices))
		if want && (err != nil || p == nil || p.Len() != 3) || !want && (p != nil || !errors.Is(err, dunlin.ErrForbidden)) {
			t.Errorf("principal kind %d: pack %v, error %v", kind, p, err)
		}
	}
	u := gateway(nil)
	if p, err := d.Take(u, []byte(`[{"n":"load","v":3}]`)); p != nil || err != nil || len(u.Records) != 1 {
		t.Errorf("a gateway's own records: pack %v, error %v, records %v", p, err, u.Records)
	}
	if p, err := d.Take(gateway(nil), []byte(`[{"bn":"urn:dev:ow:a:","n":"temp"}]`)); p != nil || !errors.Is(err, dunlin.ErrBadPayload) {
		t.Errorf("another's bad record: pack %v, error %v", p, err)
	}
	for _, body := range []string{ // more records than the first look expects
		`[{"bn":"urn:dev:ow:a:","n":"x","v":1,"s":2},{"bn":"","n":"y","v":1,"s":2}]`,
		`[{"bs":1,"bn":"urn:dev:ow:a:","n":"x"},{"n":"z"},{"bn":"","n":"y"}]`,
	} {
		if _, err := d.Take(gateway(nil), []byte(body)); err != nil {
			t.Errorf("%s: %v", body, err)
		}
	}
}

// Every part is its device's own uplink, from the same sender.
func TestPackParts(t *testing.T) {
	w := &asked{}
	u := gateway(w)
	p, err := payload.NewDecoder().Take(u, []byte(threeDevices))
	if err != nil {
		t.Fatal(err)
	}
	first, last := p.Offer()
	parts := chainOf(first)
	if devices(parts) != "gw-1 a b" || last != parts[2] {
		t.Fatalf("offered %s", devices(parts))
	}
	for i, want := range []string{"load 3\n", "temp 1\n", "temp 2\n"} {
		if got := render(parts[i].Records); got != want || parts[i].Sender != u.Sender || parts[i].Tenant != "acme" || parts[i].Waiter != p {
			t.Errorf("%s: %q, %+v", parts[i].Device, got, parts[i])
		}
	}
	if parts[0].Input.Sender != "" || parts[1].Input.Sender != "gw-1" {
		t.Errorf("senders %q and %q", parts[0].Input.Sender, parts[1].Input.Sender)
	}
	if parts[0].MessageID != 7 || parts[1].MessageID == 7 || parts[1].MessageID == 0 {
		t.Errorf("message ids %d and %d; a key used for the gateway and for the device must not meet", parts[0].MessageID, parts[1].MessageID)
	}
	again, err := payload.NewDecoder().Take(gateway(w), []byte(threeDevices))
	if err != nil {
		t.Fatal(err)
	}
	if head, _ := again.Offer(); head.Next.MessageID != parts[1].MessageID {
		t.Error("a repetition has another message id")
	}
	for i, pt := range parts {
		pt.Waiter.Done(pt, dunlin.Receipt{Seq: uint64(i + 40), Created: i == 2})
		pt.Waiter.Done(pt, dunlin.Receipt{Err: dunlin.ErrForbidden}) // a second time is nothing
	}
	if w.times != 1 || w.u != u || u.Tag != 9 || w.receipt != (dunlin.Receipt{Seq: 40, Created: true}) {
		t.Errorf("told %d times: %+v", w.times, w.receipt)
	}
}

// The answer to a pack is its worst part's. What was refused for now, and only that, is offered again.
func TestPackReceipt(t *testing.T) {
	fault := errors.New("fault")
	seq := dunlin.Receipt{Seq: 1}
	dup := dunlin.Receipt{Seq: 1, Duplicate: true}
	no := func(err error) dunlin.Receipt { return dunlin.Receipt{Err: fmt.Errorf("%w: because", err)} }
	busy := dunlin.Receipt{Err: dunlin.ErrOverloaded, RetryAfterSeconds: 3}
	for _, c := range []struct {
		gw, a, b dunlin.Receipt
		err      error
		text     string
		again    string
	}{
		{gw: seq, a: seq, b: seq},
		{gw: dup, a: dup, b: dup},
		{gw: seq, a: no(dunlin.ErrForbidden), b: seq, err: dunlin.ErrForbidden, text: "device a: not allowed: because (1 of 3 devices refused, the rest kept)"},
		{gw: seq, a: no(dunlin.ErrUnknownDevice), b: no(dunlin.ErrForbidden), err: dunlin.ErrForbidden, text: "device b: not allowed: because (2 of 3 devices refused, the rest kept)"},
		{gw: no(dunlin.ErrTooLarge), a: no(dunlin.ErrUnknownDevice), b: no(dunlin.ErrInvalid), err: dunlin.ErrUnknownDevice, text: "device a: unknown device: because (3 of 3 devices refused)"},
		{gw: no(fault), a: no(dunlin.ErrForbidden), b: seq, err: fault},
		{gw: seq, a: busy, b: no(dunlin.ErrForbidden), err: dunlin.ErrOverloaded, text: "device a: overloaded (2 of 3 devices refused)", again: "a"},
		{gw: no(dunlin.ErrUnavailable), a: dup, b: no(dunlin.ErrNotOwner), err: dunlin.ErrUnavailable, again: "gw-1? b?"},
	} {
		w := &asked{}
		p, err := payload.NewDecoder().Take(gateway(w), []byte(threeDevices))
		if err != nil {
			t.Fatal(err)
		}
		first, _ := p.Offer()
		parts := chainOf(first)
		for i, r := range []dunlin.Receipt{c.gw, c.a, c.b} {
			parts[i].Waiter.Done(parts[i], r)
		}
		r := w.receipt
		if w.times != 1 || !errors.Is(r.Err, c.err) || c.text != "" && r.Err.Error() != c.text {
			t.Errorf("%+v: told %d times: %v", c, w.times, r.Err)
		}
		if r.Err == nil && (r.Seq != 1 || r.Duplicate != c.gw.Duplicate) || c.a.RetryAfterSeconds != r.RetryAfterSeconds {
			t.Errorf("%+v: receipt %+v", c, r)
		}
		first, _ = p.Offer()
		var again []string
		for _, u := range chainOf(first) {
			id := string(u.Device)
			if u.Flags&dunlin.FlagMayRepeat != 0 {
				id += "?"
			}
			again = append(again, id)
		}
		if got := strings.Join(again, " "); got != c.again {
			t.Errorf("%+v: offered again %q", c, got)
		}
	}
}

// Whatever becomes of the parts, in whatever order and however often they are offered, the Waiter is told once each time
// and every part is kept at most once.
func TestPackLaw(t *testing.T) {
	errs := []error{nil, dunlin.ErrOverloaded, dunlin.ErrUnavailable, dunlin.ErrForbidden, dunlin.ErrUnknownDevice}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 40).Draw(t, "devices")
		var body strings.Builder
		for i := range n {
			fmt.Fprintf(&body, `,{"bn":"urn:dev:ow:d%d:","n":"x","v":%d}`, i, i)
		}
		w := &asked{}
		p, err := payload.NewDecoder().Take(gateway(w), []byte("["+body.String()[1:]+"]"))
		if err != nil || p.Len() != n {
			t.Fatalf("%d parts of %d: %v", p.Len(), n, err)
		}
		settled := map[dunlin.DeviceID]bool{}
		for round := 1; ; round++ {
			first, _ := p.Offer()
			parts := chainOf(first)
			if len(parts) == 0 {
				break
			}
			var wg sync.WaitGroup
			for _, u := range rapid.Permutation(parts).Draw(t, "order") {
				if settled[u.Device] {
					t.Fatalf("%s is offered again", u.Device)
				}
				err := rapid.SampledFrom(errs).Draw(t, "outcome")
				settled[u.Device] = err == nil || errors.Is(err, dunlin.ErrForbidden) || errors.Is(err, dunlin.ErrUnknownDevice)
				wg.Go(func() { u.Waiter.Done(u, dunlin.Receipt{Seq: 1, Err: err}) })
			}
			wg.Wait()
			if w.times != round {
				t.Fatalf("told %d times in %d rounds", w.times, round)
			}
		}
		if len(settled) != n {
			t.Fatalf("%d of %d devices settled", len(settled), n)
		}
	})
}

// Records without a name are named by their own device's first unit, as if each device had sent its own.
func TestPackNamesUnnamedRecordsPerDevice(t *testing.T) {
	p, err := payload.NewDecoder().Take(gateway(&asked{}), []byte(`[{"bn":"urn:dev:ow:a","u":"Cel","v":1},{"bn":"urn:dev:ow:b","u":"%RH","v":2},
		{"u":"lon","v":3},{"bn":"gw-1","u":"W","v":4},{"bn":"urn:dev:ow:a","u":"Cel","t":-1,"v":5}]`))
	if err != nil {
		t.Fatal(err)
	}
	first, _ := p.Offer()
	got := ""
	for _, u := range chainOf(first) {
		for _, r := range u.Records {
			got += fmt.Sprintf("%s %s %s %v\n", u.Device, r.Metric, r.Unit, r.Num)
		}
	}
	if want := "gw-1 value W 4\na value Cel 1\na value Cel 5\nb value %RH 2\nb value/lon lon 3\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}
