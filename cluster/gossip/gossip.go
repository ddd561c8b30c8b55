// Package gossip tells who is alive, where, and who is said to own what: memberlist behind a small door. It never decides
// ownership; that is Raft's.
//
//	memberlist's goroutines ──delegate: under its lock, so copy and poke──▶ view, hints ──one goroutine──▶ OnChange, OnRefused
//
// Refused are nodes with another cluster's id, with another secret, and the later of two living nodes with one name: each
// is told in words that say what to do, and the running cluster does not notice.
//
// Part of the runtime; no compatibility promise before v1.
package gossip

import (
	"context"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dunlin-iot/dunlin"
)

// DefaultPort is where nodes gossip if a seed names no port.
const DefaultPort = 7946

// Config says who this node is and how it gossips. Self and Keys must be given.
type Config struct {
	Self Self

	Bind      string   // host:port to listen on, TCP and UDP; "": 0.0.0.0:7946; port 0: any
	Advertise string   // host or host:port at which others reach it; "": Bind, or a private address of the machine
	Keys      [][]byte // of 32 bytes each, the primary first; the others are only read with, for a rotation of the secret

	ProbeInterval time.Duration // one member is probed so often; 0: 300 ms
	ProbeTimeout  time.Duration // a probe without an answer goes the long way after this; 0: 150 ms
	SuspicionMult int           // a suspect has about this many ProbeIntervals to speak up; 0: 4
	DeadKeep      time.Duration // the dead stay in Members for this long; 0: 24 h

	// OnChange is called when Members or Hints may have changed, from one goroutine; calls are merged.
	OnChange func()
	// OnRefused is called, from the same goroutine, when this node may not take part (another living node has its name and
	// was there first, or the cluster it reached is another one): Members shows what was before. The error says what to do.
	OnRefused func(error)

	Resolver Resolver              // of seeds' names; nil: the system's
	Clock    func() dunlin.Time    // nil: the system's
	Log      *slog.Logger          // nil: none
	Metrics  prometheus.Registerer // nil: none
}

// Resolver looks up names: *net.Resolver.
type Resolver interface {
	LookupHost(ctx context.Context, host string) ([]string, error)
	LookupSRV(ctx context.Context, service, proto, name string) (cname string, addrs []*net.SRV, err error)
}

// Seen is a node as this one sees it.
type Seen struct {
	Self
	Alive bool
	Since dunlin.Time // when it came, or was found dead
	Addr  string      // where it gossips
}
