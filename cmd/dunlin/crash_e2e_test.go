package main_test

import (
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin/internal/load"
)

// ledger is what one device knows: the readings that were acked to it, by their time.
type ledger struct {
	device string
	acked  map[int64]float64 // Unix milliseconds → temperature
}

// sender plays one device over a kill of its node: what was not acked when the node died is sent again, as the protocol
// repeats it, once the node is back.
func sender(dev *ledger, c load.Client, base int64, died <-chan struct{}, back <-chan struct{}, count *atomic.Int64) error {
	for i := int64(0); ; i++ {
		at := base + i
		temp := 4.0
		if i%20 == 10 {
			temp = 1000 // lifts the mean of five over 8 by itself: one alert, cleared five readings later
		}
		err := c.Send(dev.device, fmt.Appendf(nil, `[{"bn":"%s:","bt":%d.%03d,"n":"temp","v":%g}]`, dev.device, at/1000, at%1000, temp))
		for errors.Is(err, load.ErrRefused) {
			err = c.Repeat()
		}
		if err != nil {
			select {
			case <-died:
			case <-time.After(5 * time.Second):
				return fmt.Errorf("%s: %w, but the node lives", dev.device, err)
			}
			<-back
			if err := c.Reconnect(); err != nil {
				return err
			}
			if err := c.Repeat(); err != nil {
				return fmt.Errorf("%s: repeat after the restart: %w", dev.device, err)
			}
			dev.acked[at] = temp
			return nil
		}
		dev.acked[at] = temp
		count.Add(1)
		select {
		case <-died: // and a CoAP client did not even notice
			return nil
		default:
		}
	}
}

// A node is killed in the middle of a load, three times over. Afterwards every acked reading is there once, and every
// spike raised its alert once.
func TestKilledInTheMiddleOfALoad(t *testing.T) {
	dir := t.TempDir()
	const clients = 40
	devs := make([]*ledger, clients)
	for i := range devs {
		devs[i] = &ledger{device: fmt.Sprintf("crash-%02d", i), acked: map[int64]float64{}}
	}
	base := time.Now().Add(-time.Hour).UnixMilli()
	args := []string{"dev", "--sim", "0", "--data", dir}
	n := start(t, args...)
	for round := range 3 {
		// The second node takes the same ports, as a restarted service does.
		args = []string{"dev", "--sim", "0", "--data", dir, "-o", "json", "--http", n.HTTP, "--mqtt", n.MQTT, "--coap", n.CoAP}
		died, back := make(chan struct{}), make(chan struct{})
		var count atomic.Int64
		var wg sync.WaitGroup
		for i, dev := range devs {
			protocol, addr := "mqtt", n.MQTT
			if i%2 == 1 {
				protocol, addr = "coap", n.CoAP
			}
			c, err := load.Dial(protocol, addr, fmt.Sprintf("%s-%d", dev.device, round), "", "")
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				defer c.Close()
				if err := sender(dev, c, base+int64(round)*1_000_000, died, back, &count); err != nil {
					t.Error(err)
				}
			})
		}
		deadline := time.Now().Add(20 * time.Second)
		for count.Load() < 3000 && time.Now().Before(deadline) {
			<-time.After(5 * time.Millisecond)
		}
		n.kill()
		close(died)
		n = launch(t, exec.Command(binary, args...))
		close(back)
		wg.Wait()
		t.Logf("round %d: killed after %d acks", round+1, count.Load())
	}
	for _, dev := range devs {
		checkReadings(t, n, dev)
		checkAlerts(t, n, dev)
	}
}

// checkReadings compares the device's whole history with its ledger.
func checkReadings(t *testing.T, n *node, dev *ledger) {
	t.Helper()
	got := map[int64]float64{}
	next := "/v1/devices/" + dev.device + "/readings?limit=50"
	for next != "" {
		var page struct {
			Readings []struct {
				Metric string    `json:"metric"`
				Time   time.Time `json:"time"`
				Value  float64   `json:"value"`
			} `json:"readings"`
			Next string `json:"next"`
		}
		n.get(next, &page)
		for _, r := range page.Readings {
			at := r.Time.UnixMilli()
			if _, twice := got[at]; twice {
				t.Errorf("%s: the reading of %v is there twice", dev.device, r.Time)
			}
			got[at] = r.Value
		}
		next = page.Next
	}
	lost, wrong := 0, 0
	for at, v := range dev.acked {
		switch g, ok := got[at]; {
		case !ok:
			lost++
		case g != v:
			wrong++
		}
	}
	if lost > 0 || wrong > 0 || len(got) != len(dev.acked) {
		t.Errorf("%s: %d acked, %d there, %d lost, %d wrong", dev.device, len(dev.acked), len(got), lost, wrong)
	}
}

// checkAlerts compares the alerts raised with the spikes acked: one each, none twice.
func checkAlerts(t *testing.T, n *node, dev *ledger) {
	t.Helper()
	spikes := 0
	for _, v := range dev.acked {
		if v > 100 {
			spikes++
		}
	}
	var page struct {
		Alerts []struct {
			Rule      string `json:"rule"`
			RaisedSeq uint64 `json:"raised_seq"`
		} `json:"items"`
	}
	n.get("/v1/devices/"+dev.device+"/alerts?limit=1000", &page)
	raised := map[uint64]int{}
	for _, a := range page.Alerts {
		if a.Rule == "too-warm" {
			raised[a.RaisedSeq]++
		}
	}
	for seq, times := range raised {
		if times > 1 {
			t.Errorf("%s: the alert of seq %d is there %d times", dev.device, seq, times)
		}
	}
	if len(raised) != spikes {
		t.Errorf("%s: %d spikes were acked, %d alerts raised", dev.device, spikes, len(raised))
	}
}
