package payload_test

import (
	"errors"
	"math"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/payload"
)

var (
	anyDevice = rapid.OneOf(rapid.StringMatching(`[A-Za-z0-9][A-Za-z0-9._:~@-]{0,20}`),
		rapid.SampledFrom([]string{"urn:dev:ow:10e2", "fridge-7", "temp", "a"}))
	anyMetric = rapid.OneOf(rapid.StringMatching(`[A-Za-z0-9][A-Za-z0-9:./_-]{0,20}`),
		rapid.SampledFrom([]string{"urn:dev:ow:other:x", "fridge-7/temp", "temp/a", "a/a/a", "value"}))
	anyRecord = rapid.Custom(func(t *rapid.T) dunlin.Record {
		r := dunlin.Record{Metric: anyMetric.Draw(t, "metric"), Unit: rapid.StringN(0, 8, 32).Draw(t, "unit")}
		// The time that a JSON pack can carry: absolute, up to the year 9999.
		r.Time = dunlin.Time(rapid.Int64Range(1<<28*1e6, 253_402_300_799_999_999).Draw(t, "time"))
		switch r.Kind = dunlin.ValueKind(rapid.IntRange(1, 4).Draw(t, "kind")); r.Kind {
		case dunlin.Number:
			if r.Num = rapid.Float64().Draw(t, "num"); math.IsInf(r.Num, 0) {
				r.Num = math.Copysign(0, -1)
			}
		case dunlin.Boolean:
			r.Num = float64(rapid.IntRange(0, 1).Draw(t, "bool"))
		case dunlin.Text:
			r.Str = strings.ToValidUTF8(rapid.String().Draw(t, "text"), "")
		case dunlin.Data:
			r.Str = string(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "data"))
		}
		return r
	})
)

func TestDecodeUndoesAppendSenML(t *testing.T) {
	d := payload.NewDecoder()
	rapid.Check(t, func(t *rapid.T) {
		dev := anyDevice.Draw(t, "device")
		recs := rapid.SliceOfN(anyRecord, 1, 8).Draw(t, "records")
		body := payload.AppendSenML(nil, dunlin.DeviceID(dev), recs)
		u := uplink(dev, dunlin.FormatSenMLJSON)
		if err := d.Decode(u, body); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		if len(u.Records) != len(recs) {
			t.Fatalf("%s: %d records, want %d", body, len(u.Records), len(recs))
		}
		for i := range recs {
			if !u.Records[i].Same(recs[i]) {
				t.Fatalf("%s:\ngot  %#v\nwant %#v", body, u.Records[i], recs[i])
			}
		}
	})
}

// The same pack in JSON and CBOR is the same records.
func TestJSONAndCBORAgree(t *testing.T) {
	d := payload.NewDecoder()
	rapid.Check(t, func(t *rapid.T) {
		type rec struct {
			N string  `cbor:"0,keyasint"`
			U string  `cbor:"1,keyasint,omitempty"`
			V float64 `cbor:"2,keyasint"`
			T float64 `cbor:"6,keyasint,omitempty"`
		}
		var packed []rec
		var recs []dunlin.Record
		for range rapid.IntRange(1, 5).Draw(t, "n") {
			r := rec{N: anyMetric.Draw(t, "metric"), V: float64(rapid.Int64Range(-1e6, 1e6).Draw(t, "v")) / 100,
				T: float64(rapid.Int64Range(1<<28, 1<<32).Draw(t, "t"))}
			if strings.HasPrefix(r.N, "urn:") || strings.HasPrefix(r.N, "z/") || strings.HasPrefix(r.N, "z:") {
				continue // names a device: another one, or this one, which it loses where it has no base name
			}
			packed = append(packed, r)
			recs = append(recs, dunlin.Record{Metric: r.N, Unit: r.U, Time: dunlin.Time(r.T * 1e6), Kind: dunlin.Number, Num: r.V})
		}
		if len(recs) == 0 {
			return
		}
		body, err := cbor.Marshal(packed)
		if err != nil {
			t.Fatal(err)
		}
		u, j := uplink("z", dunlin.FormatSenMLCBOR), uplink("z", dunlin.FormatSenMLJSON)
		if err := d.Decode(u, body); err != nil {
			t.Fatal(err)
		}
		if err := d.Decode(j, payload.AppendSenML(nil, "z", recs)); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(u.Records, j.Records) {
			t.Fatalf("CBOR %v\nJSON %v", u.Records, j.Records)
		}
	})
}

// fuzz checks what holds for any payload: no panic, a known error or records that are valid and survive AppendSenML.
func fuzz(f *testing.F, format dunlin.ContentFormat) {
	d := payload.NewDecoder()
	f.Fuzz(func(t *testing.T, b []byte) {
		u := uplink("fridge-7", format)
		err := d.Decode(u, b)
		fuzzTake(t, d, u, err, b)
		if err != nil {
			for _, known := range []error{dunlin.ErrBadPayload, dunlin.ErrTooLarge, dunlin.ErrForbidden} {
				if errors.Is(err, known) {
					return
				}
			}
			t.Fatalf("an error of no kind: %v", err)
		}
		if len(u.Records) == 0 || len(u.Records) > payload.RecordsMax {
			t.Fatalf("%d records", len(u.Records))
		}
		for i := range u.Records {
			r := &u.Records[i]
			if dunlin.ValidateMetric(r.Metric) != nil || r.Time <= 0 || r.Kind < dunlin.Number || r.Kind > dunlin.Data ||
				math.IsNaN(r.Num) || math.IsInf(r.Num, 0) || r.Kind > dunlin.Boolean && r.Num != 0 || r.Kind <= dunlin.Boolean && r.Str != "" {
				t.Fatalf("record %+v", r)
			}
			if r.Time < 1<<28*1e6 {
				return
			}
		}
		again := uplink("fridge-7", dunlin.FormatSenMLJSON)
		if err := d.Decode(again, payload.AppendSenML(nil, "fridge-7", u.Records)); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(again.Records, u.Records) {
			t.Fatalf("got  %v\nwant %v", again.Records, u.Records)
		}
	})
}

// fuzzTake checks what a gateway's door makes of the same payload that Decode made u and err of.
func fuzzTake(t *testing.T, d *payload.Decoder, u *dunlin.Uplink, err error, b []byte) {
	g := uplink("fridge-7", u.Format)
	g.Sender.Kind = dunlin.PrincipalGateway
	pack, packErr := d.Take(g, b)
	var other *payload.OtherDevice
	switch {
	case err == nil && (packErr != nil || pack != nil || !reflect.DeepEqual(g.Records, u.Records)):
		t.Fatalf("a device sends %v; a gateway %v: %v", u.Records, g.Records, packErr)
	case err != nil && packErr == nil && !errors.As(err, &other):
		t.Fatalf("a gateway may send what is no payload: %v", err)
	case pack == nil:
		return
	}
	records, seen := 0, map[dunlin.DeviceID]bool{}
	first, _ := pack.Offer()
	for p := first; p != nil; p = p.Next {
		if p.Device.Validate() != nil || seen[p.Device] || len(p.Records) == 0 {
			t.Fatalf("part %+v", p)
		}
		seen[p.Device] = true
		records += len(p.Records)
	}
	if len(seen) != pack.Len() || records > payload.RecordsMax {
		t.Fatalf("%d of %d devices, %d records", len(seen), pack.Len(), records)
	}
}

func FuzzSenMLJSON(f *testing.F) {
	f.Add([]byte(reading))
	f.Add([]byte(`[{"bn":"fridge-7/","bt":1e9,"bu":"V","bv":1,"bs":2,"bver":10,"n":"a","u":"b","vs":"\u00e9","s":1,"t":-1,"ut":3},{"n":"b","vd":"aGk"}]`))
	f.Add([]byte(`[{"bn":"urn:dev:ow:fridge-7:","n":"a","vb":true,"x":[{}]}]`))
	f.Add([]byte(`[{"bn":"urn:dev:ow:a:","n":"x","v":1,"s":2},{"n":"y","v":1},{"bn":"","n":"z","v":1,"s":2},{"bn":"urn:dev:ow:b","u":"W","s":1}]`))
	fuzz(f, dunlin.FormatSenMLJSON)
}

func FuzzSenMLCBOR(f *testing.F) {
	f.Add([]byte("\x82\xa4\x21\x68fridge-7\x22\x1a\x65\x00\x00\x00\x00\x61a\x02\xf9\x3c\x00\xa2\x00\x61b\x04\xf5"))
	f.Add([]byte("\x9f\xbf\x00\x61a\x08\x42hi\x05\xc4\x82\x21\x19\x6a\xb3\xff\xff"))
	fuzz(f, dunlin.FormatSenMLCBOR)
}

func FuzzFlatJSON(f *testing.F) {
	f.Add([]byte(`{"a":1.5,"b":{"c":[true,"x",null]},"ts":1767225590.5}`))
	fuzz(f, dunlin.FormatJSON)
}

func FuzzFlatCBOR(f *testing.F) {
	f.Add([]byte("\xa3\x61a\xf9\x44\x80\x61b\xbf\x61c\x82\xf5\x61x\xff\x62ts\xc1\x1a\x69\x55\xb8\xf6"))
	fuzz(f, dunlin.FormatCBOR)
}

func FuzzText(f *testing.F) {
	f.Add([]byte(" 21.5\n"))
	fuzz(f, dunlin.FormatText)
}

// Many doors share a decoder (run with -race).
func TestConcurrentUse(t *testing.T) {
	d := payload.NewDecoder()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 500 {
				if got, err := decode(d, "fridge-7", dunlin.FormatSenMLJSON, reading); err != nil || !strings.HasPrefix(got, "temperature [Cel]") {
					t.Errorf("got %q, %v", got, err)
				}
			}
		})
	}
	wg.Wait()
}

// reading is what a device sends all day: 180 bytes, four metrics.
const reading = `[{"bn":"urn:dev:mac:fridge-7:","bt":1767225599.123,"n":"temperature","u":"Cel","v":4.5},` +
	`{"n":"humidity","u":"%RH","v":61.2},{"n":"battery","u":"V","v":3.02},{"n":"door","vb":false}]`

func TestAllocations(t *testing.T) {
	d := payload.NewDecoder()
	u := uplink("fridge-7", dunlin.FormatSenMLJSON)
	body := []byte(reading)
	if n := testing.AllocsPerRun(200, func() {
		if err := d.Decode(u, body); err != nil {
			t.Fatal(err)
		}
	}); n > 1 {
		t.Errorf("Decode of a reading allocates %v times, want once: the records", n)
	}
	buf := make([]byte, 0, 1024)
	if n := testing.AllocsPerRun(200, func() { buf = payload.AppendSenML(buf[:0], u.Device, u.Records) }); n > 0 {
		t.Errorf("AppendSenML allocates %v times", n)
	}
}

func BenchmarkDecodeSenMLJSON(b *testing.B) {
	d := payload.NewDecoder()
	u := uplink("fridge-7", dunlin.FormatSenMLJSON)
	body := []byte(reading)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if err := d.Decode(u, body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeSenMLCBOR(b *testing.B) {
	d := payload.NewDecoder()
	u := uplink("fridge-7", dunlin.FormatSenMLCBOR)
	body, err := cbor.Marshal([]map[int]any{{-2: "fridge-7:", -3: 1767225599.123, 0: "temperature", 1: "Cel", 2: 4.5},
		{0: "humidity", 1: "%RH", 2: 61.2}, {0: "battery", 1: "V", 2: 3.02}, {0: "door", 4: false}})
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if err := d.Decode(u, body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeJSON(b *testing.B) {
	d := payload.NewDecoder()
	u := uplink("fridge-7", dunlin.FormatJSON)
	body := []byte(`{"temperature":4.5,"humidity":61.2,"battery":3.02,"door":false,"ts":1767225599123}`)
	b.ReportAllocs()
	for b.Loop() {
		if err := d.Decode(u, body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendSenML(b *testing.B) {
	u := uplink("fridge-7", dunlin.FormatSenMLJSON)
	if err := payload.NewDecoder().Decode(u, []byte(reading)); err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		buf = payload.AppendSenML(buf[:0], u.Device, u.Records)
	}
}
