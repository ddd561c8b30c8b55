package sessions

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

// claim names a holding of a session.
type claim struct {
	key     dunlin.DeviceKey
	epoch   uint64
	renewed bool
}

// claimsMax is how many go into one call.
const claimsMax = 512

func appendClaims(dst []byte, list []claim) []byte {
	dst = append(dst, wireVersion)
	dst = binary.AppendUvarint(dst, uint64(len(list)))
	for i := range list {
		c := &list[i]
		dst = appendBytes(appendBytes(dst, c.key.Tenant), c.key.Device)
		dst = append(binary.AppendUvarint(dst, c.epoch), flags(c.renewed))
	}
	return dst
}

func decodeClaims(b []byte) ([]claim, error) {
	r := reader{b: b}
	r.version(wireVersion)
	n := r.uvarint()
	if n > claimsMax {
		return nil, fmt.Errorf("%w: %d claims in one call, want at most %d", dunlin.ErrInvalid, n, claimsMax)
	}
	var list []claim
	for range n {
		if r.bad {
			break
		}
		list = append(list, claim{key: r.key(), epoch: r.uvarint(), renewed: r.byte()&1 != 0})
	}
	return list, r.end("claims")
}

// cutKey reads a row's key.
func cutKey(key string) (dunlin.DeviceKey, bool) {
	tenant, name, ok := strings.Cut(key, "/")
	return dunlin.DeviceKey{Tenant: dunlin.Tenant(tenant), Device: dunlin.DeviceID(name)}, ok && tenant != "" && name != ""
}
