// Package floor is what the job costs without a runtime: a bare server that parses the packet and the SenML, commits one
// synced Pebble batch per group of readings, and acks. No actors, no plugins, no log, no queries: the rival that the
// benchmarks hold the runtime against.
// Part of the runtime; no compatibility promise before v1.
package floor

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// Config says where the floor listens and keeps its data.
type Config struct {
	Dir  string
	MQTT string // address
	CoAP string // address
}

// reading is one parsed report on its way to the committer.
type reading struct {
	key   []byte
	value []byte
	ack   func()
}

// groupMax bounds a committed group, as the runtime's turns are bounded.
const groupMax = 512

// Server is a running floor.
type Server struct {
	db    *pebble.DB
	tcp   net.Listener
	udp   *net.UDPConn
	queue chan reading
	wg    sync.WaitGroup
}

// Start opens the store and the sockets and serves until Close.
func Start(cfg Config) (*Server, error) {
	db, err := pebble.Open(cfg.Dir, &pebble.Options{Logger: quiet{}})
	if err != nil {
		return nil, err
	}
	s := &Server{db: db, queue: make(chan reading, 4*groupMax)} // a few groups: readers run ahead of the disk
	if s.tcp, err = net.Listen("tcp", cfg.MQTT); err != nil {
		return nil, err
	}
	ua, err := net.ResolveUDPAddr("udp", cfg.CoAP)
	if err != nil {
		return nil, err
	}
	if s.udp, err = net.ListenUDP("udp", ua); err != nil {
		return nil, err
	}
	_ = s.udp.SetReadBuffer(4 << 20) // best effort: the kernel may allow less
	go s.accept()
	go s.serveCoAP()
	s.wg.Go(s.commit)
	return s, nil
}

// MQTT and CoAP are the bound addresses.
func (s *Server) MQTT() string { return s.tcp.Addr().String() }

// CoAP is the bound UDP address.
func (s *Server) CoAP() string { return s.udp.LocalAddr().String() }

// Wait blocks until ctx ends; the process is then meant to exit: a floor needs no orderly close.
func (s *Server) Wait(ctx context.Context) { <-ctx.Done() }

// commit writes what has come as one synced batch, and then acks it.
func (s *Server) commit() {
	group := make([]reading, 0, groupMax)
	for r := range s.queue {
		group = append(group[:0], r)
	more:
		for len(group) < groupMax {
			select {
			case r := <-s.queue:
				group = append(group, r)
			default:
				break more
			}
		}
		b := s.db.NewBatch()
		for _, r := range group {
			if err := b.Set(r.key, r.value, nil); err != nil {
				panic(fmt.Sprintf("floor: batch of %d: %v", len(group), err))
			}
		}
		if err := b.Commit(pebble.Sync); err != nil {
			panic(fmt.Sprintf("floor: commit of %d: %v", len(group), err))
		}
		b.Close()
		for _, r := range group {
			r.ack()
		}
	}
}

// record is a SenML record as the load sends it.
type record struct {
	BaseName string   `json:"bn"`
	BaseTime float64  `json:"bt"`
	Name     string   `json:"n"`
	Unit     string   `json:"u"`
	Value    *float64 `json:"v"`
	Bool     *bool    `json:"vb"`
	Time     float64  `json:"t"`
}

// parse makes a row of a SenML pack: key device 0x00 time, value the metrics' values.
func parse(device string, payload []byte) (key, value []byte, err error) {
	var pack []record
	if err := json.Unmarshal(payload, &pack); err != nil {
		return nil, nil, err
	}
	if len(pack) == 0 {
		return nil, nil, fmt.Errorf("empty pack")
	}
	at := time.UnixMicro(int64((pack[0].BaseTime + pack[0].Time) * 1e6))
	key = append(append(make([]byte, 0, len(device)+9), device...), 0)
	key = binary.BigEndian.AppendUint64(key, uint64(at.UnixMicro()))
	for _, r := range pack {
		value = append(value, byte(len(r.Name)))
		value = append(value, r.Name...)
		switch {
		case r.Value != nil:
			value = append(value, fmt.Appendf(nil, "%g", *r.Value)...)
		case r.Bool != nil && *r.Bool:
			value = append(value, '1')
		default:
			value = append(value, '0')
		}
		value = append(value, 0)
	}
	return key, value, nil
}

type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...))
}
