// Package load plays devices against a node's real sockets: MQTT QoS 1 publishers and CoAP CON clients, in a closed loop
// (each sends its next reading when the last is acked) or at a given rate, with the latency of every ack and alert.
// Part of the runtime; no compatibility promise before v1.
package load

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Config describes one run. Addr, Protocol and Clients must be given.
type Config struct {
	Protocol string        // "mqtt" or "coap"
	Addr     string        // host:port of the gateway
	Clients  int           // connections (MQTT) or sockets (CoAP), one uplink in flight each
	Devices  int           // devices, shared out over the clients; default Clients, never fewer
	Prefix   string        // of the device ids; a prefix not used before makes sequence numbers start at 1
	Rate     float64       // uplinks/s over all clients; 0: closed loop
	Warmup   time.Duration // not counted
	Duration time.Duration // counted
	User     string        // MQTT user name; "" connects without
	Password string
	// Flips is how often, in uplinks and at least 6, a device sends a reading that raises the example domain's alert (and
	// five uplinks later one that clears it); 0: never.
	Flips int
	// Alerts is the MQTT address where alert transitions are subscribed to, to time reading → alert; "" for no such clock.
	Alerts string
	// Connected, if not nil, is called when all clients are connected and nothing was sent yet; Played when the last ack has
	// come and the clients are still connected.
	Connected, Played func()
	// Progress, if not nil, is told about once a second how many uplinks were acked so far.
	Progress func(acked int64, elapsed time.Duration)
}

// Result is what a run measured. Latencies are in microseconds.
type Result struct {
	Acked    int64
	Refused  int64 // answered with an error
	Seconds  float64
	Ack      *hdrhistogram.Histogram
	Alert    *hdrhistogram.Histogram
	Flips    int64 // alert transitions caused
	Alerts   int64 // alert transitions seen
	Sent     int64 // uplinks sent in all, warm-up and unanswered included
	AckedAll int64 // uplinks acked in all, warm-up included
}

// PerSecond is the rate of acked uplinks.
func (r *Result) PerSecond() float64 { return float64(r.Acked) / r.Seconds }

// Client is one connection or socket of a made-up device: it sends an uplink and waits for its answer.
type Client interface {
	// Send posts a SenML JSON payload as the device's telemetry and returns once it is acked. ErrRefused: answered, but not kept.
	Send(device string, payload []byte) error
	// Repeat sends the last message again as its protocol does it when an ack got lost: the same ids, DUP in MQTT.
	Repeat() error
	// Reconnect opens a fresh connection after the node went away, as the same device; Repeat still knows the last message.
	Reconnect() error
	Close()
}

// ErrRefused is the answer of a node that could not keep an uplink for now.
var ErrRefused = errors.New("refused")

// Dial connects a client of the protocol, "mqtt" or "coap". The name is the MQTT client id; for CoAP it seeds the message ids.
func Dial(protocol, addr, name, user, password string) (Client, error) {
	var c Client
	var err error
	switch protocol {
	case "mqtt":
		c, err = dialMQTT(addr, name, user, password)
	case "coap":
		h := fnv.New64a()
		h.Write([]byte(name))
		c, err = dialCoAP(addr, uint16(h.Sum64()), password)
	default:
		err = fmt.Errorf("protocol %q is neither mqtt nor coap", protocol)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// run is a run's shared state.
type run struct {
	cfg      Config
	start    time.Time // of the counted part
	end      time.Time
	acked    atomic.Int64
	ackedAll atomic.Int64
	sent     atomic.Int64
	refused  atomic.Int64
	flips    atomic.Int64
	alerts   *alertClock
	mu       struct {
		sync.Mutex
		ack *hdrhistogram.Histogram
		err error
	}
}

// Run connects the clients, plays the load and returns what it measured. It ends early, with an error, when ctx ends
// or a client's connection fails.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	if cfg.Protocol != "mqtt" && cfg.Protocol != "coap" {
		return nil, fmt.Errorf("load: protocol %q is neither mqtt nor coap", cfg.Protocol)
	}
	if cfg.Clients < 1 {
		return nil, errors.New("load: want at least one client")
	}
	cfg.Devices = max(cfg.Devices, cfg.Clients)
	r := &run{cfg: cfg}
	r.mu.ack = newHistogram()
	if cfg.Alerts != "" {
		clock, err := newAlertClock(cfg)
		if err != nil {
			return nil, err
		}
		defer clock.close()
		r.alerts = clock
	}
	clients, err := r.connect(ctx)
	defer func() {
		for _, c := range clients {
			c.Close()
		}
	}()
	if err != nil {
		return nil, err
	}
	if cfg.Connected != nil {
		cfg.Connected()
	}
	res, err := r.play(ctx, clients)
	if err == nil && cfg.Played != nil {
		cfg.Played()
	}
	return res, err
}

func (r *run) connect(ctx context.Context) ([]Client, error) {
	clients := make([]Client, 0, r.cfg.Clients)
	for i := range r.cfg.Clients {
		if err := ctx.Err(); err != nil {
			return clients, context.Cause(ctx)
		}
		c, err := Dial(r.cfg.Protocol, r.cfg.Addr, fmt.Sprintf("%s-load-%d", r.cfg.Prefix, i), r.cfg.User, r.cfg.Password)
		if err != nil {
			return clients, fmt.Errorf("load: client %d: %w", i, err)
		}
		clients = append(clients, c)
	}
	return clients, nil
}

func (r *run) play(ctx context.Context, clients []Client) (*Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	begin := time.Now()
	r.start = begin.Add(r.cfg.Warmup)
	r.end = r.start.Add(r.cfg.Duration)
	if r.alerts != nil {
		r.alerts.countFrom(r.start)
	}
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() {
			if err := r.playClient(ctx, i, c, begin); err != nil {
				r.fail(err)
				cancel()
			}
		})
	}
	stopProgress := r.progress(begin)
	wg.Wait()
	stopProgress()
	if r.alerts != nil {
		r.alerts.settle(r.flips.Load())
	}
	if r.mu.err != nil {
		return nil, r.mu.err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	res := &Result{Acked: r.acked.Load(), Refused: r.refused.Load(), Seconds: r.cfg.Duration.Seconds(), Ack: r.mu.ack,
		Flips: r.flips.Load(), Sent: r.sent.Load(), AckedAll: r.ackedAll.Load()}
	if r.alerts != nil {
		res.Alert, res.Alerts = r.alerts.result()
	}
	return res, nil
}

// playClient plays the devices i, i+Clients, i+2·Clients, … in turn.
func (r *run) playClient(ctx context.Context, i int, c Client, begin time.Time) error {
	var devs []*device
	for d := i; d < r.cfg.Devices; d += r.cfg.Clients {
		devs = append(devs, newDevice(r.cfg, d))
	}
	hist := newHistogram()
	defer func() {
		r.mu.Lock()
		r.mu.ack.Merge(hist)
		r.mu.Unlock()
	}()
	pace := newPace(r.cfg, i, begin)
	var buf []byte
	for n := 0; ctx.Err() == nil; n++ {
		due, late := pace.wait(ctx, n)
		now := time.Now()
		if !now.Before(r.end) {
			return nil
		}
		from := now
		if late {
			from = due // the last ack came after this uplink was due: its wait counts
		}
		dev := devs[n%len(devs)]
		flip := dev.next()
		if flip {
			r.flips.Add(1)
			if r.alerts != nil {
				r.alerts.sent(dev.id, dev.seq, from)
			}
		}
		buf = dev.payload(buf[:0], now)
		r.sent.Add(1)
		err := c.Send(dev.id, buf)
		done := time.Now()
		switch {
		case errors.Is(err, ErrRefused):
			r.refused.Add(1)
			dev.seq--
			continue
		case err != nil:
			return fmt.Errorf("load: client %d: %w", i, err)
		}
		r.ackedAll.Add(1)
		if done.After(r.start) && done.Before(r.end) {
			r.acked.Add(1)
			_ = hist.RecordValue(min(done.Sub(from).Microseconds(), histMax)) // within range by min
		}
	}
	return nil
}

const histMax = int64(60 * time.Second / time.Microsecond)

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, histMax, 3) }

// pace says when a client's n-th uplink is due.
type pace struct {
	closed   bool
	begin    time.Time
	interval time.Duration // between a client's uplinks
	offset   time.Duration // so that clients spread evenly
	timer    *time.Timer
}

func newPace(cfg Config, i int, begin time.Time) *pace {
	if cfg.Rate <= 0 {
		return &pace{closed: true}
	}
	every := time.Duration(float64(time.Second) / cfg.Rate)
	return &pace{begin: begin, interval: every * time.Duration(cfg.Clients), offset: every * time.Duration(i), timer: time.NewTimer(math.MaxInt64)}
}

// wait sleeps until the n-th uplink is due; late says that it was due already.
func (p *pace) wait(ctx context.Context, n int) (due time.Time, late bool) {
	if p.closed {
		return time.Time{}, false
	}
	due = p.begin.Add(p.offset + time.Duration(n)*p.interval)
	d := time.Until(due)
	if d <= 0 {
		return due, true
	}
	p.timer.Reset(d)
	select {
	case <-p.timer.C:
	case <-ctx.Done():
	}
	return due, false
}

func (r *run) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.err == nil {
		r.mu.err = err
	}
}

func (r *run) progress(begin time.Time) (stop func()) {
	if r.cfg.Progress == nil {
		return func() {}
	}
	quit := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case now := <-tick.C:
				r.cfg.Progress(r.ackedAll.Load(), now.Sub(begin))
			case <-quit:
				return
			}
		}
	})
	return func() { close(quit); wg.Wait() }
}
