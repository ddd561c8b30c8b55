//go:build dunlin_next

package peer

// WireMin and WireMax are those of a build of tomorrow, with which rolling upgrades are tested.
const (
	WireMin = 1
	WireMax = 2
)
