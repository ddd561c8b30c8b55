//go:build dunlin_next

package entry

// Version is that of a build of tomorrow, with which rolling upgrades are tested.
const Version = 3
