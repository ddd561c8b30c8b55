package httpapi

import (
	"encoding/json"
	"fmt"
	"mime"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"github.com/dunlin-iot/dunlin"
)

// A SenML pack whose base names name devices becomes one item per run of records of the same device:
//
//	[{"bn":"fridge-1/","bt":1.7e9,"n":"t","v":4}, {"n":"h","v":50}, {"bn":"urn:dev:ops:fridge-2/","n":"t","v":5}]
//	   └── fridge-1: both records ──────────────────────────────┘  └── fridge-2, with bt carried over ─────────┘
//
// Base fields hold until another record sets them (RFC 8428 §4.1), so the first record of a run takes over those that
// the runs before it left. What the records say is the payload decoder's business; here only names matter.

// senmlKeys are the labels of the base fields in one representation.
type senmlKeys[K comparable] struct {
	baseName K
	carried  []K // bver, bt, bu, bv, bs
}

func splitSenMLJSON(body []byte, limit int) ([]batchItem, error) {
	var recs []map[string]json.RawMessage
	if err := json.Unmarshal(body, &recs); err != nil {
		return nil, fmt.Errorf("%w: SenML pack: %w; nothing of the batch was taken", dunlin.ErrBadPayload, err)
	}
	text := func(raw json.RawMessage) (s string, err error) { return s, json.Unmarshal(raw, &s) }
	pack := func(run []map[string]json.RawMessage) ([]byte, error) { return json.Marshal(run) }
	keys := senmlKeys[string]{baseName: "bn", carried: []string{"bver", "bt", "bu", "bv", "bs"}}
	return splitSenML(recs, keys, text, pack, dunlin.FormatSenMLJSON, limit)
}

func splitSenMLCBOR(body []byte, limit int) ([]batchItem, error) {
	mode, err := cbor.DecOptions{MaxArrayElements: 1 << 16, MaxMapPairs: 64, MaxNestedLevels: 8}.DecMode()
	if err != nil {
		return nil, err
	}
	var recs []map[any]cbor.RawMessage
	if err := mode.Unmarshal(body, &recs); err != nil {
		return nil, fmt.Errorf("%w: SenML pack: %w; nothing of the batch was taken", dunlin.ErrBadPayload, err)
	}
	for i, rec := range recs { // labels may come as any integer type; make them one
		clean := make(map[any]cbor.RawMessage, len(rec))
		for k, v := range rec {
			if n, ok := k.(uint64); ok && n < 1<<62 {
				k = int64(n)
			}
			clean[k] = v
		}
		recs[i] = clean
	}
	text := func(raw cbor.RawMessage) (s string, err error) { return s, mode.Unmarshal(raw, &s) }
	pack := func(run []map[any]cbor.RawMessage) ([]byte, error) { return cbor.Marshal(run) }
	// RFC 8428 table 4: bver −1, bn −2, bt −3, bu −4, bv −5, bs −6.
	keys := senmlKeys[any]{baseName: int64(-2), carried: []any{int64(-1), int64(-3), int64(-4), int64(-5), int64(-6)}}
	return splitSenML(recs, keys, text, pack, dunlin.FormatSenMLCBOR, limit)
}

// splitSenML makes the runs. It changes recs.
func splitSenML[K comparable, V ~[]byte](recs []map[K]V, keys senmlKeys[K], text func(V) (string, error), pack func([]map[K]V) ([]byte, error),
	format dunlin.ContentFormat, limit int) ([]batchItem, error) {
	var items []batchItem
	base := map[K]V{}
	for start := 0; start < len(recs); {
		rec := recs[start]
		raw, ok := rec[keys.baseName]
		name := ""
		if ok {
			var err error
			if name, err = text(raw); err != nil {
				return nil, fmt.Errorf("%w: record %d: bn is no text; nothing of the batch was taken", dunlin.ErrBadPayload, start)
			}
		}
		dev := deviceOfBaseName(name)
		if dev == "" {
			return nil, fmt.Errorf("%w: record %d names no device: in a batch the base name (bn) is the device's id, alone or at the end of a URN; "+
				"nothing of the batch was taken", dunlin.ErrBadPayload, start)
		}
		if len(items) == limit {
			return nil, tooMany(limit)
		}
		for _, k := range keys.carried {
			if v, ok := base[k]; ok && rec[k] == nil {
				rec[k] = v
			}
		}
		end := start
		for ; end < len(recs) && (end == start || sameDevice(recs[end][keys.baseName], dev, text)); end++ {
			for _, k := range keys.carried {
				if v, ok := recs[end][k]; ok {
					base[k] = v
				}
			}
		}
		body, err := pack(recs[start:end])
		if err != nil {
			return nil, fmt.Errorf("%w: record %d: %w", dunlin.ErrBadPayload, start, err)
		}
		items = append(items, batchItem{device: dev, format: format, body: body})
		start = end
	}
	return items, nil
}

// sameDevice reports whether a record with this base name (nil: none) still belongs to dev's run.
func sameDevice[V ~[]byte](baseName V, dev dunlin.DeviceID, text func(V) (string, error)) bool {
	if baseName == nil {
		return true
	}
	name, err := text(baseName)
	return err == nil && deviceOfBaseName(name) == dev
}

// deviceOfBaseName finds the device id in a base name: the whole of it, or the end of a URN, without a separator behind.
func deviceOfBaseName(name string) dunlin.DeviceID {
	name = strings.TrimRight(name, "/:_")
	if rest, ok := strings.CutPrefix(name, "urn:"); ok {
		if i := strings.LastIndexByte(rest, ':'); i >= 0 {
			name = rest[i+1:]
		}
	}
	return dunlin.DeviceID(name)
}

// mediaTypeOf is a Content-Type without its parameters, in lower case.
func mediaTypeOf(contentType string) string {
	if mt, _, err := mime.ParseMediaType(contentType); err == nil {
		return mt
	}
	mt, _, _ := strings.Cut(contentType, ";")
	return strings.ToLower(strings.TrimSpace(mt))
}
