package sessions

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
)

var anyText = rapid.SliceOfN(rapid.Byte(), 1, 20)

func orNil(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return b
}

func anyRow(t *rapid.T) *row {
	some := rapid.SliceOfN(rapid.Byte(), 0, 20)
	r := &row{epoch: rapid.Uint64().Draw(t, "epoch"), holder: dunlin.NodeID(rapid.Uint64().Draw(t, "holder")), expiry: rapid.Uint32().Draw(t, "expiry"),
		since: dunlin.Time(rapid.Int64Min(0).Draw(t, "since")), endsAt: dunlin.Time(rapid.Int64Min(0).Draw(t, "ends")),
		willDelay: rapid.Uint32().Draw(t, "delay"), will: orNil(some.Draw(t, "will")), exact: rapid.Bool().Draw(t, "exact"),
		body: orNil(some.Draw(t, "body"))}
	for range rapid.IntRange(0, willsMax).Draw(t, "wills") {
		r.wills = append(r.wills, lateWill{rapid.Uint64().Draw(t, "e"), dunlin.Time(rapid.Int64Min(0).Draw(t, "at")), anyText.Draw(t, "text")})
	}
	return r
}

func anyRequest(t *rapid.T) *request {
	some := rapid.SliceOfN(rapid.Byte(), 0, 20)
	return &request{kind: kind(rapid.IntRange(1, int(kindExpire)).Draw(t, "kind")),
		key:  dunlin.DeviceKey{Tenant: dunlin.Tenant(anyText.Draw(t, "tenant")), Device: dunlin.DeviceID(anyText.Draw(t, "name"))},
		node: dunlin.NodeID(rapid.Uint64().Draw(t, "node")), epoch: rapid.Uint64().Draw(t, "epoch"), force: rapid.Uint64().Draw(t, "force"),
		clean: rapid.Bool().Draw(t, "clean"), done: rapid.Bool().Draw(t, "done"), fate: dunlin.SessionWill(rapid.IntRange(0, 2).Draw(t, "fate")),
		expiry: rapid.Uint32().Draw(t, "expiry"), willDelay: rapid.Uint32().Draw(t, "delay"), grace: rapid.Uint32().Draw(t, "grace"),
		will: orNil(some.Draw(t, "will")), body: orNil(some.Draw(t, "body"))}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := anyRow(t)
		if got, err := decodeRow(appendRow(nil, r)); err != nil || !reflect.DeepEqual(got, r) {
			t.Fatalf("row: got %+v, %v, want %+v", got, err, r)
		}
		q := anyRequest(t)
		if got, err := decodeRequest(appendRequest(nil, q)); err != nil || !reflect.DeepEqual(got, q) {
			t.Fatalf("request: got %+v, %v, want %+v", got, err, q)
		}
		a := reply{status: status(rapid.IntRange(1, int(statusFull)).Draw(t, "status")), present: q.clean, exact: q.done, volatile: !q.done, node: q.node,
			epoch: q.epoch, before: q.force, body: q.body}
		if got, err := decodeReply(appendReply(nil, &a)); err != nil || !reflect.DeepEqual(got, a) {
			t.Fatalf("reply: got %+v, %v, want %+v", got, err, a)
		}
		list := []claim{{q.key, q.epoch, q.done}, {q.key, q.force, q.clean}}
		if got, err := decodeClaims(appendClaims(nil, list)); err != nil || !reflect.DeepEqual(got, list) {
			t.Fatalf("claims: got %+v, %v, want %+v", got, err, list)
		}
	})
}

// TestRowBytes holds the format of rows, which are on disks.
func TestRowBytes(t *testing.T) {
	const want = "01010507e8078094ebdc0380d0c0deeb030a0377696c01068094ebdc03036f6c6404626f6479"
	r := &row{epoch: 5, holder: 7, expiry: 1000, since: 1_000_000_000, endsAt: 132_000_000_000, willDelay: 10, will: []byte("wil"), exact: true,
		wills: []lateWill{{6, 1_000_000_000, []byte("old")}}, body: []byte("body")}
	if got := hex.EncodeToString(appendRow(nil, r)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	b, _ := hex.DecodeString(want)
	if got, err := decodeRow(b); err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(appendRow(nil, &row{epoch: 1, wills: []lateWill{{1, 2, []byte("x")}}, body: []byte("b")}))
	f.Add(appendRequest(nil, &request{kind: kindOpen, key: dunlin.DeviceKey{Tenant: "t", Device: "d"}}))
	f.Add(appendReply(nil, &reply{status: statusHeld}))
	f.Add(appendClaims(nil, []claim{{dunlin.DeviceKey{Tenant: "t", Device: "d"}, 3, true}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRow(b)
		if err == nil {
			again, err := decodeRow(appendRow(nil, r))
			if err != nil || !reflect.DeepEqual(again, r) {
				t.Errorf("row %+v becomes %+v, %v", r, again, err)
			}
		}
		q, qerr := decodeRequest(b)
		if qerr == nil && !bytes.Equal(appendRequest(nil, q)[:4], b[:4]) && b[2] < 4 {
			t.Errorf("request %+v", q)
		}
		_, aerr := decodeReply(b)
		list, cerr := decodeClaims(b)
		if len(list) > claimsMax {
			t.Errorf("%d claims", len(list))
		}
		for _, err := range []error{err, qerr, aerr, cerr} {
			if err != nil && !errors.Is(err, dunlin.ErrInvalid) && !errors.Is(err, dunlin.ErrTooLarge) {
				t.Errorf("%v is not ErrInvalid", err)
			}
		}
	})
}
