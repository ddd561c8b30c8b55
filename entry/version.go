//go:build !dunlin_next

package entry

// Version is 1.
const Version = 1
