//go:build !dunlin_next

package peer

// WireMin and WireMax are the versions of the bytes between nodes that this build speaks; see docs/formats/peer.md.
const (
	WireMin = 1
	WireMax = 1
)
