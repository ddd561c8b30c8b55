// Package sim plays a fleet of cold-chain fridges, or replays a CSV file of real readings, over real CoAP and MQTT sockets,
// with the faults of real fleets: lost and repeated messages, wrong clocks, a door left open.
// Part of the runtime; no compatibility promise before v1.
package sim

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin/internal/load"
)

// Config describes a fleet. At least one of MQTT and CoAP must be given.
type Config struct {
	MQTT, CoAP string // addresses; with both, every other device speaks CoAP
	Devices    int
	Prefix     string        // of the device ids; default "fridge"
	Every      time.Duration // between a device's readings; default 1s
	Seed       uint64        // of everything random; the same seed plays the same readings
	Drop       float64       // share of messages that never leave the device
	Duplicate  float64       // share of messages that are sent twice, as after a lost ack
	Skew       time.Duration // device clocks are off by up to this
	User       string        // credential of an MQTT gateway; "" for an open node
	Password   string        // of User, and the CoAP key
}

// Stats counts what a fleet did; safe to read while it runs.
type Stats struct {
	Acked      atomic.Int64
	Refused    atomic.Int64
	Dropped    atomic.Int64
	Duplicated atomic.Int64
	Reconnects atomic.Int64
}

// Run plays the fleet until ctx ends. A device whose node does not answer tries again, as devices do.
func Run(ctx context.Context, cfg Config, stats *Stats) error {
	if cfg.MQTT == "" && cfg.CoAP == "" {
		return errors.New("sim: no address to send to")
	}
	if cfg.Prefix == "" {
		cfg.Prefix = "fridge"
	}
	if cfg.Every <= 0 {
		cfg.Every = time.Second
	}
	var wg sync.WaitGroup
	for i := range cfg.Devices {
		wg.Go(func() { newFridge(&cfg, i, stats).run(ctx) })
	}
	wg.Wait()
	return nil
}

// fridge is one device: a refrigerated box whose compressor cycles and whose door opens now and then.
type fridge struct {
	cfg      *Config
	n        int
	id       string
	protocol string
	addr     string
	rng      *rand.Rand
	stats    *Stats
	skew     time.Duration
	temp     float64
	battery  float64
	cooling  bool
	doorOpen time.Duration // for how much longer
	age      time.Duration
}

func newFridge(cfg *Config, n int, stats *Stats) *fridge {
	f := &fridge{cfg: cfg, n: n, id: fmt.Sprintf("%s-%02d", cfg.Prefix, n+1), stats: stats, protocol: "mqtt", addr: cfg.MQTT,
		rng: rand.New(rand.NewPCG(cfg.Seed, uint64(n))), temp: 4, battery: 3.6}
	if cfg.MQTT == "" || cfg.CoAP != "" && n%2 == 1 {
		f.protocol, f.addr = "coap", cfg.CoAP
	}
	f.temp = 3 + 2*f.rng.Float64()
	if cfg.Skew > 0 {
		f.skew = time.Duration((2*f.rng.Float64() - 1) * float64(cfg.Skew))
	}
	return f
}

// leftOpen is the story that every demo tells: one fridge's door is left open shortly after the start, and again every
// few minutes, for a minute.
const (
	leftOpenAt    = 3 * time.Second
	leftOpenFor   = time.Minute
	leftOpenEvery = 4 * time.Minute
)

// step moves the box on by dt.
func (f *fridge) step(dt time.Duration) {
	before := f.age
	f.age += dt
	if f.n == min(6, f.cfg.Devices-1) {
		for at := leftOpenAt; at <= f.age; at += leftOpenEvery {
			if at > before {
				f.doorOpen = leftOpenFor
			}
		}
	} else if f.doorOpen <= 0 && f.rng.Float64() < dt.Seconds()/300 {
		f.doorOpen = time.Duration(2+f.rng.IntN(4)) * time.Second
	}
	s := dt.Seconds()
	if f.doorOpen > 0 {
		f.doorOpen -= dt
		f.temp += (21 - f.temp) * (1 - math.Exp(-s/25))
	}
	switch {
	case f.temp > 5:
		f.cooling = true
	case f.temp < 3:
		f.cooling = false
	}
	if f.cooling && f.doorOpen <= 0 {
		f.temp += (1.5 - f.temp) * (1 - math.Exp(-s/40))
	} else {
		f.temp += 0.02 * s
	}
	f.battery -= 0.000002 * s
}

func (f *fridge) payload(now time.Time) []byte {
	noise := (f.rng.Float64() - 0.5) / 10
	num := func(v float64, digits int) string { return strconv.FormatFloat(v, 'f', digits, 64) }
	return fmt.Appendf(nil, `[{"bn":"%s:","bt":%s,"n":"temp","u":"Cel","v":%s},{"n":"humidity","u":"%%RH","v":%s},{"n":"battery","u":"V","v":%s},{"n":"door","vb":%t}]`,
		f.id, num(float64(now.Add(f.skew).UnixMilli())/1000, 3), num(f.temp+noise, 2), num(45+20*noise, 1), num(f.battery, 3), f.doorOpen > 0)
}

func (f *fridge) run(ctx context.Context) {
	var c load.Client
	defer func() {
		if c != nil {
			c.Close()
		}
	}()
	phase := time.Duration(f.rng.Int64N(int64(f.cfg.Every)))
	timer := time.NewTimer(phase)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		timer.Reset(f.cfg.Every)
		f.step(f.cfg.Every)
		c = f.report(ctx, c)
	}
}

// report sends one reading and returns the connection to use next: nil after an error, to be dialled again.
func (f *fridge) report(ctx context.Context, c load.Client) load.Client {
	body := f.payload(time.Now())
	if f.rng.Float64() < f.cfg.Drop {
		f.stats.Dropped.Add(1)
		return c
	}
	if c == nil {
		var err error
		if c, err = load.Dial(f.protocol, f.addr, f.id, f.cfg.User, f.cfg.Password); err != nil {
			f.stats.Reconnects.Add(1)
			return nil
		}
	}
	stop := context.AfterFunc(ctx, c.Close) // a wait for an ack must not outlive ctx
	defer stop()
	err := c.Send(f.id, body)
	if err == nil && f.rng.Float64() < f.cfg.Duplicate {
		f.stats.Duplicated.Add(1)
		err = c.Repeat()
	}
	switch {
	case err == nil:
		f.stats.Acked.Add(1)
	case errors.Is(err, load.ErrRefused):
		f.stats.Refused.Add(1)
	default:
		if ctx.Err() == nil { // otherwise the end of the play is what broke it
			f.stats.Reconnects.Add(1)
		}
		c.Close()
		return nil
	}
	return c
}
