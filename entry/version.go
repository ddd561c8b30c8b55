//go:build !dunlin_next

package entry

// Version is the newest version of entries that this build reads and writes.
const Version = 2
