package load

import (
	"fmt"
	"hash/fnv"
	"strconv"
	"time"
)

// device makes the readings of one made-up fridge: four metrics in about 180 bytes of SenML.
type device struct {
	id    string
	flips int
	seq   uint64 // uplinks sent, the one being made included
	phase uint64 // so that devices do not spike at the same time
	rng   uint64
	temp  int64 // 1/100 °C
	hum   int64 // 1/10 %
	batt  int64 // mV
}

func newDevice(cfg Config, n int) *device {
	id := fmt.Sprintf("%s-%06d", cfg.Prefix, n)
	h := fnv.New64a()
	h.Write([]byte(id))
	d := &device{id: id, flips: cfg.Flips, rng: h.Sum64() | 1, temp: 400, hum: 450, batt: 3600}
	if d.flips > 0 {
		d.phase = d.random() % uint64(d.flips)
	}
	return d
}

// window is how many readings the example rule's mean spans.
const window = 5

// next moves the device on by one uplink and reports whether this one makes an alert transition. Every flips-th reading is
// so hot that it lifts the mean of the last five over the limit by itself: this one raises the alert, and the one that
// pushes it out of the window clears it.
func (d *device) next() (flip bool) {
	d.seq++
	r := d.random()
	d.temp += int64(r%21) - 10
	d.temp = min(max(d.temp, 200), 600)
	d.hum += int64(r>>8%11) - 5
	d.hum = min(max(d.hum, 300), 700)
	if r>>16%64 == 0 {
		d.batt--
	}
	return d.spike() || d.flips > window && d.seq > 2*window && (d.seq+d.phase)%uint64(d.flips) == window
}

// spike reports whether this uplink is the hot one. The first few are not: the rule wants a full window.
func (d *device) spike() bool {
	return d.flips > window && d.seq > window && (d.seq+d.phase)%uint64(d.flips) == 0
}

// random is xorshift64: a load needs cheap numbers, not good ones.
func (d *device) random() uint64 {
	d.rng ^= d.rng << 13
	d.rng ^= d.rng >> 7
	d.rng ^= d.rng << 17
	return d.rng
}

func (d *device) payload(dst []byte, now time.Time) []byte {
	temp := d.temp
	if d.spike() {
		temp = 100_000
	}
	dst = append(dst, `[{"bn":"urn:dev:`...)
	dst = append(dst, d.id...)
	dst = append(dst, `:","bt":`...)
	dst = strconv.AppendFloat(dst, float64(now.UnixMilli())/1000, 'f', 3, 64)
	dst = append(dst, `,"n":"temp","u":"Cel","v":`...)
	dst = strconv.AppendFloat(dst, float64(temp)/100, 'f', -1, 64)
	dst = append(dst, `},{"n":"humidity","u":"%RH","v":`...)
	dst = strconv.AppendFloat(dst, float64(d.hum)/10, 'f', -1, 64)
	dst = append(dst, `},{"n":"battery","u":"V","v":`...)
	dst = strconv.AppendFloat(dst, float64(d.batt)/1000, 'f', -1, 64)
	return append(dst, `},{"n":"door","vb":false}]`...)
}
