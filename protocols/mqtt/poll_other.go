//go:build !linux

package mqtt

import "net"

// loop exists on Linux only; elsewhere every connection has a goroutine.
type loop struct{}

func newLoops(*Gateway) ([]*loop, error) { return nil, nil }

func (*loop) run() error { return nil }

func (*loop) stop() {}

func (*loop) discard() {}

func (*loop) wire(*conn, net.Conn) (wire, func() error, error) { return nil, nil, nil }
