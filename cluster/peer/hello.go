package peer

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/dunlin-iot/dunlin"
)

const (
	textMax   = 255  // bytes of a cluster id, name or version
	helloMax  = 4096 // bytes of a Hello of any version
	helloHead = len(magic) + 2
)

// magic begins each side's Hello. It, the layout of Hello and that of Refuse stay as they are for all versions.
const magic = "DUNLIN\x00\x01"

// Hello is what a node says of itself before anything else.
type Hello struct {
	Cluster string // id; "": has not joined one
	Node    dunlin.NodeID
	Name    string
	WireMin uint32
	WireMax uint32
	Version string // of its binary, for people
}

// kind is what a connection is for.
type kind uint8

const (
	kindLink kind = 1 // the one link of a pair
	kindCall kind = 2 // one call, from a node that may not be a member
)

// hello is a Hello as it is sent.
type hello struct {
	Hello
	kind kind
	boot uint64 // random, of this life of the process: tells a copied data folder from a new connection
	// What the node with the larger id has last heard from the other one: whose life, and the highest number of a Use.
	seenBoot, seen uint64
}

func (h *hello) append(b []byte) []byte {
	b = append(b, magic...)
	at := len(b)
	b = append(b, 0, 0, byte(h.kind))
	b = binary.LittleEndian.AppendUint32(b, h.WireMin)
	b = binary.LittleEndian.AppendUint32(b, h.WireMax)
	for _, v := range []uint64{uint64(h.Node), h.boot, h.seenBoot, h.seen} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	for _, s := range []string{h.Cluster, h.Name, h.Version} {
		b = append(append(b, byte(len(s))), s...)
	}
	binary.LittleEndian.PutUint16(b[at:], uint16(len(b)-at-2))
	return b
}

// readHello reads a Hello, and not a byte more.
func readHello(r io.Reader) (*hello, error) {
	var head [helloHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	if string(head[:len(magic)]) != magic {
		return nil, broken("the other side does not say Hello")
	}
	n := int(binary.LittleEndian.Uint16(head[len(magic):]))
	if n > helloMax {
		return nil, broken("Hello of %d bytes, want at most %d", n, helloMax)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	return parseHello(b)
}

func parseHello(b []byte) (*hello, error) {
	const fixed = 1 + 2*4 + 4*8
	if len(b) < fixed {
		return nil, broken("Hello of %d bytes", len(b))
	}
	le := binary.LittleEndian
	h := &hello{kind: kind(b[0]), boot: le.Uint64(b[17:]), seenBoot: le.Uint64(b[25:]), seen: le.Uint64(b[33:])}
	h.WireMin, h.WireMax, h.Node = le.Uint32(b[1:]), le.Uint32(b[5:]), dunlin.NodeID(le.Uint64(b[9:]))
	b = b[fixed:]
	for _, s := range []*string{&h.Cluster, &h.Name, &h.Version} {
		if len(b) == 0 || len(b) < 1+int(b[0]) {
			return nil, broken("Hello ends in a text")
		}
		*s, b = printable(b[1:1+b[0]]), b[1+b[0]:]
	}
	// What a later version appends is not for us.
	switch {
	case h.Node == 0 || h.Name == "" || h.boot == 0:
		return nil, broken("Hello of node %s, name %q, boot %d", h.Node, h.Name, h.boot)
	case h.WireMin == 0 || h.WireMin > h.WireMax:
		return nil, broken("Hello with versions %d to %d", h.WireMin, h.WireMax)
	case h.kind != kindLink && h.kind != kindCall:
		return nil, broken("Hello of kind %d", h.kind)
	}
	return h, nil
}

// Reason says why a node will not talk to another one.
type Reason uint8

// The reasons of a Refusal. Their numbers are on the wire.
const (
	RefusedForeign     Reason = 1  // of another cluster
	RefusedVersion     Reason = 2  // no version in common
	RefusedLeft        Reason = 3  // has left the cluster
	RefusedTwin        Reason = 4  // another process has the same id
	RefusedSelf        Reason = 5  // the address is the node's own
	RefusedCertificate Reason = 6  // certificate and Hello name different nodes
	RefusedNotJoined   Reason = 7  // one of the two belongs to no cluster yet
	RefusedRedundant   Reason = 8  // there is a better connection
	RefusedBroken      Reason = 9  // it sent what no node sends
	RefusedBusy        Reason = 10 // too many connections
)

var reasonNames = [...]string{RefusedForeign: "foreign", RefusedVersion: "version", RefusedLeft: "left", RefusedTwin: "twin", RefusedSelf: "self",
	RefusedCertificate: "certificate", RefusedNotJoined: "not_joined", RefusedRedundant: "redundant", RefusedBroken: "broken", RefusedBusy: "busy"}

func (r Reason) String() string {
	if int(r) < len(reasonNames) && reasonNames[r] != "" {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// lasting reports whether trying again soon is of no use: somebody has to do something first.
func (r Reason) lasting() bool {
	switch r {
	case RefusedForeign, RefusedVersion, RefusedLeft, RefusedTwin, RefusedSelf, RefusedCertificate, RefusedBroken:
		return true
	}
	return false
}

// Refusal is the error of a connection that one side will not have. Text is for the people of the refused side.
type Refusal struct {
	Reason Reason
	Text   string
	Theirs bool // the other side refused this one
}

func (r *Refusal) Error() string {
	if r.Theirs {
		return "refused by the other side: " + r.Text
	}
	return "refused: " + r.Text
}

// Unwrap returns the error that callers branch on.
func (r *Refusal) Unwrap() error {
	switch r.Reason {
	case RefusedForeign, RefusedTwin, RefusedSelf:
		return dunlin.ErrConflict
	case RefusedVersion:
		return dunlin.ErrPrecondition
	case RefusedLeft:
		return dunlin.ErrForbidden
	case RefusedCertificate:
		return dunlin.ErrUnauthenticated
	case RefusedBusy:
		return dunlin.ErrOverloaded
	case RefusedBroken:
		return dunlin.ErrInvalid
	}
	return dunlin.ErrUnavailable
}

func refuse(r Reason, format string, args ...any) *Refusal {
	return &Refusal{Reason: r, Text: fmt.Sprintf(format, args...)}
}

func broken(format string, args ...any) *Refusal { return refuse(RefusedBroken, format, args...) }

// greet decides about a connection by what both sides said and what the other side's certificate names (0: nobody). It
// returns the version to speak. The text of a refusal is read on the other side: "you" is them.
func greet(self, them *hello, kind kind, cert dunlin.NodeID) (version uint32, r *Refusal) {
	me := fmt.Sprintf("node %s (%s)", self.Name, self.Node)
	switch {
	case cert != 0 && cert != them.Node:
		return 0, refuse(RefusedCertificate, "your certificate is for node %s, but you say that you are %s (%s): is the certificate another node's?", cert, them.Name, them.Node)
	case them.boot == self.boot:
		return 0, refuse(RefusedSelf, "%s reached itself: the address it has for another node is its own", me)
	case them.Node == self.Node:
		return 0, refuse(RefusedTwin, "%s and you (%s) have the same id: one data folder is a copy of the other; stop one of the two and start it with an empty data folder", me, them.Name)
	case self.Cluster != "" && them.Cluster != "" && self.Cluster != them.Cluster:
		return 0, refuse(RefusedForeign, "%s belongs to cluster %s, you belong to cluster %s: correct the addresses to join, or start with an empty data folder to leave your cluster for this one",
			me, self.Cluster, them.Cluster)
	}
	if version, r = common(self, them, me); r != nil {
		return 0, r
	}
	if kind == kindLink && (self.Cluster == "" || them.Cluster == "") {
		return 0, refuse(RefusedNotJoined, "of %s and you one has not joined a cluster yet", me)
	}
	return version, nil
}

// common returns the newest version that both speak.
func common(self, them *hello, me string) (uint32, *Refusal) {
	v := min(self.WireMax, them.WireMax)
	if v >= max(self.WireMin, them.WireMin) {
		return v, nil
	}
	ranges := fmt.Sprintf("%s (dunlin %s) speaks versions %d to %d between nodes, you (dunlin %s) %d to %d",
		me, self.Version, self.WireMin, self.WireMax, them.Version, them.WireMin, them.WireMax)
	if self.WireMax < them.WireMax {
		return 0, refuse(RefusedVersion, "%s: upgrade %s to a release that speaks at least version %d", ranges, self.Name, them.WireMin)
	}
	return 0, refuse(RefusedVersion, "%s: upgrade %s, the node that reads this, to a release that speaks at least version %d", ranges, them.Name, self.WireMin)
}

// printable makes the other side's text fit for a terminal.
func printable(b []byte) string {
	out := make([]rune, 0, len(b))
	for _, r := range string(b) {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0xfffd {
			r = '?'
		}
		out = append(out, r)
	}
	return string(out)
}
