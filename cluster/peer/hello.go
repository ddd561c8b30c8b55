package peer

import "github.com/dunlin-iot/dunlin"

const (
	textMax  = 255      // bytes of a cluster id, name or version
	chunkMax = 64 << 10 // bytes of a piece of a body
)

// Hello is what a node says of itself before anything else.
type Hello struct {
	Cluster string // id; "": has not joined one
	Node    dunlin.NodeID
	Name    string
	WireMin uint32
	WireMax uint32
	Version string // of its binary, for people
}
