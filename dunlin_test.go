package dunlin

import (
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestNames(t *testing.T) {
	for name, want := range map[string]bool{"fridge-07": true, "a": true, "0": true, "urn:dev:ow:10e2": true, "a.b_c~d@e": true,
		"": false, "-a": false, "a/b": false, "a+b": false, "a#": false, "a b": false, "ä": false, "a\x00": false,
		strings.Repeat("x", NameBytesMax): true, strings.Repeat("x", NameBytesMax+1): false} {
		err := DeviceID(name).Validate()
		if (err == nil) != want {
			t.Errorf("DeviceID(%q).Validate() = %v", name, err)
		}
		if err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%v is not ErrInvalid", err)
		}
	}
	for name, want := range map[string]bool{"temp": true, "engine/rpm": true, "a:b.c-d_e": true, "": false, "/a": false, "a b": false, "a~": false,
		strings.Repeat("x", MetricBytesMax): true, strings.Repeat("x", MetricBytesMax+1): false} {
		if err := ValidateMetric(name); (err == nil) != want {
			t.Errorf("ValidateMetric(%q) = %v", name, err)
		}
	}
}

func TestTimeReadsAndWritesRFC3339(t *testing.T) {
	at := TimeOf(time.Date(2026, 2, 3, 4, 5, 6, 789_000_000, time.UTC))
	b, err := json.Marshal(at)
	if err != nil || string(b) != `"2026-02-03T04:05:06.789Z"` {
		t.Errorf("got %s, %v", b, err)
	}
	var back Time
	if err := json.Unmarshal([]byte(`"2026-02-03T05:05:06.789+01:00"`), &back); err != nil || back != at {
		t.Errorf("got %v, %v", back, err)
	}
	if err := json.Unmarshal([]byte(`"yesterday"`), &back); !errors.Is(err, ErrInvalid) {
		t.Errorf("got %v", err)
	}
	if d := at.Add(1500 * time.Millisecond).Sub(at); d != 1500*time.Millisecond {
		t.Errorf("got %v", d)
	}
}

func TestWordsReadAndWrite(t *testing.T) {
	type doc struct {
		S Severity
		A AlertState
		D Duration
		H ModuleHash
	}
	in := doc{Critical, AlertShelved, Duration(90 * time.Second), ModuleHash{0xab, 31: 0xcd}}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out doc
	if err := json.Unmarshal(b, &out); err != nil || out != in {
		t.Errorf("%s: got %+v, %v", b, out, err)
	}
	for _, bad := range []string{`{"S":"awful"}`, `{"A":"gone"}`, `{"D":"soon"}`, `{"H":"abcd"}`, `{"S":""}`} {
		if err := json.Unmarshal([]byte(bad), &out); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v", bad, err)
		}
	}
}

func TestCursorLaw(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Cursor(rapid.SliceOfN(rapid.Uint64(), 1, 64).Draw(t, "cursor"))
		back, err := ParseCursor(c.String(), len(c))
		if err != nil || !reflect.DeepEqual(back, c) {
			t.Fatalf("%v: got %v, %v", c, back, err)
		}
		if _, err := ParseCursor(c.String(), len(c)+1); !errors.Is(err, ErrInvalid) {
			t.Fatalf("of another cluster: %v", err)
		}
	})
}

func FuzzParseCursor(f *testing.F) {
	f.Add(Cursor{1, 2, 300}.String())
	f.Add("")
	f.Add("!!")
	f.Fuzz(func(t *testing.T, s string) {
		if c, err := ParseCursor(s, 3); err == nil && len(c) != 3 {
			t.Errorf("%q: %v", s, c)
		}
	})
}

func TestWhoMayDoWhat(t *testing.T) {
	d := DeviceKey{"t1", "d1"}
	for _, c := range []struct {
		p                          Principal
		write, read, all, administ bool
	}{
		{Principal{}, false, false, false, false},
		{Principal{Kind: PrincipalDevice, Tenant: "t1", ID: "d1"}, true, true, false, false},
		{Principal{Kind: PrincipalDevice, Tenant: "t1", ID: "d2"}, false, false, false, false},
		{Principal{Kind: PrincipalDevice, Tenant: "t2", ID: "d1"}, false, false, false, false},
		{Principal{Kind: PrincipalGateway, Tenant: "t1", ID: "g"}, true, true, false, false},
		{Principal{Kind: PrincipalGateway, Tenant: "t2", ID: "g"}, false, false, false, false},
		{Principal{Kind: PrincipalApplication, Tenant: "t1"}, false, true, true, false},
		{Principal{Kind: PrincipalApplication, Tenant: "t2"}, false, false, true, false},
		{Principal{Kind: PrincipalOperator, Tenant: "t1"}, true, true, true, true},
		{Principal{Kind: PrincipalOperator, Tenant: "t2"}, false, false, true, true},
		{Principal{Kind: PrincipalOpen}, true, true, true, true},
	} {
		if got := [4]bool{c.p.MayWrite(d), c.p.MayRead(d), c.p.MayReadAll(), c.p.MayAdmin()}; got != [4]bool{c.write, c.read, c.all, c.administ} {
			t.Errorf("%+v: write, read, read all, administer = %v", c.p, got)
		}
	}
}

func TestSameTellsNaNsApartByTheirBits(t *testing.T) {
	a := Record{Metric: "m", Kind: Number, Num: math.NaN()}
	b := a
	b.Num = math.Float64frombits(math.Float64bits(a.Num) ^ 1)
	if !a.Same(a) || a.Same(b) || !(Record{Num: 1}).Same(Record{Num: 1}) || (Record{}).Same(Record{Num: math.Copysign(0, -1)}) {
		t.Error("Same is not equality of bits")
	}
}
