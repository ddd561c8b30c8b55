package mqtt

import (
	"fmt"
	"runtime"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// Config bounds the gateway. The zero value of a field is its default.
type Config struct {
	Addr string // default 127.0.0.1:1883; port 0 picks one

	ConnectionsMax   int   // default 100,000; above it a CONNECT is answered "server busy"
	HalfOpenMax      int   // connections that aren't logged in; default 1,024; above it the oldest goes
	SessionsMax      int   // sessions with and without a connection; default 200,000
	SubscriptionsMax int   // of one session; default 32, at most 1,024
	PacketBytesMax   int   // of one packet; default 128 KiB, 1 KiB to 1 MiB
	ConnectBytesMax  int   // of a CONNECT; default 8 KiB, at most PacketBytesMax
	InputBytesMax    int64 // of packets of all connections that are not complete or must wait; default 128 MiB
	TopicBytesMax    int   // default 256
	ClientIDBytesMax int   // default 128
	TopicAliasMax    int   // MQTT 5 topic aliases of one connection; default 8, at most 64; negative: none

	ReceiveMax     int // unanswered QoS 1 and 2 messages of one client; default 64, at most 1,024
	WindowMax      int // unacknowledged QoS 1 messages to one subscriber; default 128, at most 4,096
	WindowBytesMax int // … and their bytes; default 1 MiB

	ConnectTimeout   time.Duration // from accept to CONNACK; default 10 s
	KeepAliveMax     time.Duration // longest keep alive, MQTT 5 clients are told; default 1 h, at most 65,535 s
	SessionExpiryMax time.Duration // how long a session outlives its connection; default 24 h
	FirstWordMax     time.Duration // how long messages of a session wait for what its client says first; default 100 ms; negative: not at all
	HoldMax          time.Duration // how long a publish that is refused for now is offered again; default 60 s
	WriteTimeout     time.Duration // how long a client may read nothing; default 30 s
	DrainMax         time.Duration // how long closing waits for commits under way; default 400 ms

	Loops    int  // epoll loops; default one a core up to 8
	Flushers int  // goroutines that write acks; default one a core up to 8
	Portable bool // a goroutine a connection instead of epoll; always so elsewhere than on Linux

	Clock func() dunlin.Time // default the system's
}

// receiveHardMax bounds what a client of MQTT 3.1.1 may leave unanswered, who isn't told a Receive Maximum: what is left
// to bound are QoS 2 messages without a PUBREL.
const receiveHardMax = 1024

// ringMax is how many PUBLISHes of a connection may be on their way. It is above ReceiveMax, so that a client that
// exceeds that is seen.
func (c *Config) ringMax() int { return c.ReceiveMax + 16 }

func (c *Config) validate() error {
	cores := runtime.GOMAXPROCS(0)
	for _, d := range []struct {
		name           string
		v              *int
		def, low, high int
	}{
		{"ConnectionsMax", &c.ConnectionsMax, 100_000, 1, 10_000_000},
		{"HalfOpenMax", &c.HalfOpenMax, 1024, 1, 1_000_000},
		{"SessionsMax", &c.SessionsMax, 200_000, 1, 10_000_000},
		{"SubscriptionsMax", &c.SubscriptionsMax, 32, 1, 1024},
		{"PacketBytesMax", &c.PacketBytesMax, 128 << 10, 1 << 10, 1 << 20},
		{"ConnectBytesMax", &c.ConnectBytesMax, 8 << 10, 256, 1 << 20},
		{"TopicBytesMax", &c.TopicBytesMax, 256, 16, 65535},
		{"ClientIDBytesMax", &c.ClientIDBytesMax, 128, 23, 65535},
		{"ReceiveMax", &c.ReceiveMax, 64, 1, 1024},
		{"WindowMax", &c.WindowMax, 128, 1, 4096},
		{"WindowBytesMax", &c.WindowBytesMax, 1 << 20, 1 << 10, 64 << 20},
		{"Loops", &c.Loops, min(cores, 8), 1, 64},
		{"Flushers", &c.Flushers, min(cores, 8), 1, 64},
	} {
		if *d.v == 0 {
			*d.v = min(d.def, d.high)
		}
		if *d.v < d.low || *d.v > d.high {
			return fmt.Errorf("%w: mqtt %s %d, want %d to %d", dunlin.ErrInvalid, d.name, *d.v, d.low, d.high)
		}
	}
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&c.ConnectTimeout, 10 * time.Second}, {&c.KeepAliveMax, time.Hour}, {&c.SessionExpiryMax, 24 * time.Hour},
		{&c.HoldMax, time.Minute}, {&c.WriteTimeout, 30 * time.Second}, {&c.DrainMax, 400 * time.Millisecond},
	} {
		if *d.v <= 0 {
			*d.v = d.def
		}
	}
	if c.Addr == "" {
		c.Addr = "127.0.0.1:1883"
	}
	if c.InputBytesMax <= 0 {
		c.InputBytesMax = 128 << 20
	}
	if c.FirstWordMax == 0 {
		c.FirstWordMax = 100 * time.Millisecond
	}
	if c.TopicAliasMax == 0 {
		c.TopicAliasMax = 8
	}
	c.TopicAliasMax = min(max(c.TopicAliasMax, 0), 64)
	c.ConnectBytesMax = min(c.ConnectBytesMax, c.PacketBytesMax)
	c.KeepAliveMax = min(c.KeepAliveMax, 65535*time.Second)
	c.SessionExpiryMax = min(c.SessionExpiryMax, (expiryNever-1)*time.Second)
	if c.Clock == nil {
		c.Clock = func() dunlin.Time { return dunlin.TimeOf(time.Now()) }
	}
	return nil
}
