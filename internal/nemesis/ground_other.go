//go:build !linux

package nemesis

import (
	"context"
	"errors"
	"net/netip"
	"os/exec"
	"time"
)

var errLinux = errors.New("namespaces are Linux'")

// Inside would run this program in namespaces of its own.
func Inside(string) (int, error) { return 0, errLinux }

func settle() error { return errLinux }

func address(int) netip.Addr { return netip.Addr{} }

type network struct{ *fabric }

func newNetwork(uint64, int) (*network, error) { return nil, errLinux }
func (n *network) start(int, *exec.Cmd) error  { return errLinux }
func (n *network) close()                      {}

type disk struct{ dir string }

func newDisk(context.Context, string, string, int64) (*disk, error) { return nil, errLinux }
func (d *disk) close() error                                        { return errLinux }
func (d *disk) fill() error                                         { return errLinux }
func (d *disk) empty() error                                        { return errLinux }
func (d *disk) stutter(context.Context, time.Duration, time.Duration) error {
	return errLinux
}
