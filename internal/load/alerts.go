package load

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// alertClock subscribes to alert transitions over MQTT and times each from the sending of the reading that did it.
type alertClock struct {
	conn   net.Conn
	prefix string
	wg     sync.WaitGroup
	mu     struct {
		sync.Mutex
		sent map[alertKey]time.Time
		got  map[alertKey]time.Time // that came before their sending was noted
		from time.Time
		seen int64
		hist *hdrhistogram.Histogram
		more *sync.Cond
		dead bool
	}
}

type alertKey struct {
	device string
	seq    uint64
}

// overheard is what the clock needs of an alert's JSON.
type overheard struct {
	Device string `json:"device"`
	Rule   string `json:"rule"`
	State  string `json:"state"`
	Seq    uint64 `json:"seq"`
}

func newAlertClock(cfg Config) (*alertClock, error) {
	conn, err := dialSession(cfg.Alerts, cfg.Prefix+"-alerts", cfg.User, cfg.Password)
	if err != nil {
		return nil, err
	}
	body := appendString([]byte{0, 1}, "d/+/a")
	body = append(body, 1)
	if _, err := conn.Write(append(appendLength([]byte{0x82}, len(body)), body...)); err != nil {
		conn.Close()
		return nil, err
	}
	in := bufio.NewReader(conn)
	if first, body, err := readPacket(in); err != nil || first != 0x90 || body[len(body)-1] > 1 {
		conn.Close()
		return nil, fmt.Errorf("subscribe to d/+/a: answer %x %x: %w", first, body, err)
	}
	c := &alertClock{conn: conn, prefix: cfg.Prefix + "-"}
	c.mu.sent = map[alertKey]time.Time{}
	c.mu.got = map[alertKey]time.Time{}
	c.mu.hist = newHistogram()
	c.mu.more = sync.NewCond(&c.mu)
	c.wg.Go(func() { c.read(in) })
	return c, nil
}

func (c *alertClock) read(in *bufio.Reader) {
	defer func() {
		c.mu.Lock()
		c.mu.dead = true
		c.mu.Unlock()
		c.mu.more.Broadcast()
	}()
	for {
		first, body, err := readPacket(in)
		if err != nil {
			return
		}
		now := time.Now()
		if first>>4 != 3 || len(body) < 4 {
			continue
		}
		n := 2 + int(body[0])<<8 + int(body[1])
		if len(body) < n+2 {
			return
		}
		if first&6 != 0 {
			if _, err := c.conn.Write([]byte{0x40, 2, body[n], body[n+1]}); err != nil {
				return
			}
			n += 2
		}
		var a overheard
		if json.Unmarshal(body[n:], &a) != nil || !strings.HasPrefix(a.Device, c.prefix) || a.Rule != "too-warm" {
			continue
		}
		c.heard(alertKey{a.Device, a.Seq}, now)
	}
}

func (c *alertClock) heard(k alertKey, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.seen++
	if sent, ok := c.mu.sent[k]; ok {
		delete(c.mu.sent, k)
		c.record(sent, now)
	} else {
		c.mu.got[k] = now
	}
	c.mu.more.Broadcast()
}

func (c *alertClock) sent(device string, seq uint64, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := alertKey{device, seq}
	if got, ok := c.mu.got[k]; ok {
		delete(c.mu.got, k)
		c.record(at, got)
		return
	}
	c.mu.sent[k] = at
}

func (c *alertClock) record(sent, got time.Time) {
	if sent.After(c.mu.from) {
		_ = c.mu.hist.RecordValue(min(max(got.Sub(sent).Microseconds(), 1), histMax)) // within range by min and max
	}
}

func (c *alertClock) countFrom(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.from = t
}

// settle waits, for up to five seconds, until as many transitions were heard as were caused.
func (c *alertClock) settle(want int64) {
	late := time.AfterFunc(5*time.Second, func() { c.mu.more.Broadcast() })
	defer late.Stop()
	deadline := time.Now().Add(5 * time.Second)
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.mu.seen < want && !c.mu.dead && time.Now().Before(deadline) {
		c.mu.more.Wait()
	}
}

func (c *alertClock) result() (*hdrhistogram.Histogram, int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.hist, c.mu.seen
}

func (c *alertClock) close() {
	c.conn.Close()
	c.wg.Wait()
}
