package gossip

import (
	"encoding/binary"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

// Self is what a node says of itself, to everybody, in every message about it.
type Self struct {
	Name     string        // for people; one living node of the cluster has it
	ID       dunlin.NodeID // of this life of the node
	Cluster  string        // the cluster's id; "" while the node has not joined one yet
	Zone     string        // replicas of a shard are spread over zones
	Peer     string        // host:port of the links between nodes
	Calls    string        // host:port of the actors' remote
	HTTP     string        // host:port for people, or ""
	Version  string        // of the binary
	WireMin  uint32        // the versions of messages between nodes that it speaks
	WireMax  uint32        //
	EntryMax uint32        // the newest version of entries that it can read
	Started  dunlin.Time   // of this process: of two nodes with one name the earlier keeps it; 0: Start fills it in
}

// Bounds of a Self. Together they must fit into metaBytesMax, too.
const (
	nameBytesMax    = 64
	clusterBytesMax = 64
	zoneBytesMax    = 64
	versionBytesMax = 64
	addrBytesMax    = 260
	metaBytesMax    = 512 // memberlist's, of what a node says of itself
)

func (s *Self) validate() error {
	if s.ID == 0 {
		return fmt.Errorf("%w: a node needs an id", dunlin.ErrInvalid)
	}
	if err := dunlin.DeviceID(s.Name).Validate(); err != nil || len(s.Name) > nameBytesMax {
		return fmt.Errorf("%w: node name %q: want 1 to %d of A-Z a-z 0-9 . _ : ~ @ -, the first a letter or digit",
			dunlin.ErrInvalid, s.Name, nameBytesMax)
	}
	for _, f := range []struct {
		what, s string
		max     int
	}{{"cluster id", s.Cluster, clusterBytesMax}, {"zone", s.Zone, zoneBytesMax}, {"version", s.Version, versionBytesMax}} {
		if len(f.s) > f.max || strings.ContainsFunc(f.s, unprintable) {
			return fmt.Errorf("%w: %s %q: want at most %d printable bytes", dunlin.ErrInvalid, f.what, f.s, f.max)
		}
	}
	for _, f := range []struct{ what, s string }{{"peer", s.Peer}, {"calls", s.Calls}, {"HTTP", s.HTTP}} {
		if f.s == "" {
			continue
		}
		if _, _, err := splitAddr(f.s); err != nil {
			return fmt.Errorf("%w: %s address %q, want host:port", dunlin.ErrInvalid, f.what, f.s)
		}
	}
	if n := len(s.meta()); n > metaBytesMax {
		return fmt.Errorf("%w: zone, version and addresses of node %s take %d bytes together, at most %d are allowed",
			dunlin.ErrInvalid, s.Name, n, metaBytesMax)
	}
	return nil
}

func unprintable(r rune) bool { return r < ' ' || r > '~' }

func splitAddr(s string) (host string, port uint16, err error) {
	host, p, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, fmt.Errorf("%w: address %q: %w", dunlin.ErrInvalid, s, err)
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil || len(host) > addrBytesMax || strings.ContainsFunc(host, unprintable) {
		return "", 0, fmt.Errorf("%w: address %q", dunlin.ErrInvalid, s)
	}
	return host, uint16(n), nil
}

// metaVersion is the first byte of a node's meta data. A node reads metas of other versions as far as it knows the fields:
// new fields go to the end.
const metaVersion = 1

// meta packs all but the name, which memberlist carries itself:
//
//	version u8 | id u64 | started i64 | wire min, wire max, entry max uvarint | cluster, zone, version: u8 length, bytes
//	peer, calls, http: uvarint (0 none, 1 the host before again, else length+2), host, port u16
func (s *Self) meta() []byte {
	b := make([]byte, 0, 160)
	b = append(b, metaVersion)
	b = binary.LittleEndian.AppendUint64(b, uint64(s.ID))
	b = binary.LittleEndian.AppendUint64(b, uint64(s.Started))
	b = binary.AppendUvarint(b, uint64(s.WireMin))
	b = binary.AppendUvarint(b, uint64(s.WireMax))
	b = binary.AppendUvarint(b, uint64(s.EntryMax))
	for _, f := range []string{s.Cluster, s.Zone, s.Version} {
		b = append(b, byte(len(f)))
		b = append(b, f...)
	}
	before := ""
	for _, a := range []string{s.Peer, s.Calls, s.HTTP} {
		if a == "" {
			b = append(b, 0)
			continue
		}
		host, port, _ := splitAddr(a)
		if host == before && host != "" {
			b = append(b, 1)
		} else {
			b = binary.AppendUvarint(b, uint64(len(host)+2))
			b = append(b, host...)
		}
		b = binary.LittleEndian.AppendUint16(b, port)
		before = host
	}
	return b
}

// parseMeta reads what meta wrote; the bytes come from the network.
func parseMeta(name string, b []byte) (Self, error) {
	r := reader{b: b}
	if v := r.byte(); v == 0 {
		return Self{}, fmt.Errorf("%w: meta data of node %q has no version", dunlin.ErrInvalid, name)
	}
	s := Self{Name: name, ID: dunlin.NodeID(r.u64()), Started: dunlin.Time(r.u64())}
	s.WireMin, s.WireMax, s.EntryMax = r.uvarint32(), r.uvarint32(), r.uvarint32()
	s.Cluster, s.Zone, s.Version = r.str(clusterBytesMax), r.str(zoneBytesMax), r.str(versionBytesMax)
	before := ""
	for _, a := range []*string{&s.Peer, &s.Calls, &s.HTTP} {
		n := r.uvarint32()
		if n == 0 {
			continue
		}
		if n > 1 {
			if n-2 > addrBytesMax {
				r.bad = true
			}
			before = string(r.bytes(int(n - 2)))
		}
		*a = net.JoinHostPort(before, strconv.Itoa(int(r.u16())))
	}
	if r.bad {
		return Self{}, fmt.Errorf("%w: meta data of node %q (%d bytes)", dunlin.ErrInvalid, name, len(b))
	}
	if err := s.validate(); err != nil {
		return Self{}, err
	}
	return s, nil
}

// reader takes bytes apart; what it reads behind the end is zero, and bad is set.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) bytes(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.bad, r.b = true, nil
		return nil
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) byte() byte {
	if p := r.bytes(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if p := r.bytes(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if p := r.bytes(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) uvarint32() uint32 {
	v := r.uvarint()
	if v > 1<<32-1 {
		r.bad = true
	}
	return uint32(v)
}

func (r *reader) str(bytesMax int) string {
	n := int(r.byte())
	if n > bytesMax {
		r.bad = true
	}
	return string(r.bytes(n))
}
