package plugins

import (
	"testing"

	"golang.org/x/sys/unix"
)

func threadNice(t *testing.T) int32 {
	t.Helper()
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return attr.Nice
}
