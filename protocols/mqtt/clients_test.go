package mqtt

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/dunlin-iot/dunlin"
)

// TestPaho: Eclipse's Go client publishes, subscribes, loses its connection and goes on with its session.
func TestPaho(t *testing.T) {
	j := newJournal(4)
	s := &shelf{auto: true, log: j}
	g := serve(t, Config{}, Deps{Ingestor: s, Feed: j})
	options := func(id string) *paho.ClientOptions {
		return paho.NewClientOptions().AddBroker("tcp://" + g.Addr().String()).SetClientID(id).SetCleanSession(false).
			SetAutoReconnect(true).SetMaxReconnectInterval(50 * time.Millisecond).SetConnectRetryInterval(20 * time.Millisecond)
	}
	done := func(what string, tk paho.Token) {
		t.Helper()
		if !tk.WaitTimeout(10*time.Second) || tk.Error() != nil {
			t.Fatalf("%s: %v", what, tk.Error())
		}
	}
	got := make(chan string, 2000)
	app := paho.NewClient(options("app").SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) { got <- string(m.Payload()) }))
	done("connect", app.Connect())
	defer app.Disconnect(100)
	done("subscribe", app.Subscribe("d/+/t", 1, nil))
	dev := paho.NewClient(options("dev"))
	done("connect", dev.Connect())
	defer dev.Disconnect(100)
	const n = 500
	var tokens []paho.Token
	for i := range n {
		tokens = append(tokens, dev.Publish("d/d1/t", byte(1+i%2), false, fmt.Sprintf(`{"n":%d}`, i)))
		if i == 200 { // the network breaks
			for _, c := range g.snapshot() {
				g.end(c, ending{err: errHalfOpen, dead: true, will: true})
			}
		}
	}
	for _, tk := range tokens {
		tk.WaitTimeout(10 * time.Second) // one that the break caught has an error, and is sent again all the same
	}
	seen := map[string]bool{} // by value: one that was sent twice comes twice
	deadline := time.After(10 * time.Second)
	for len(seen) < n {
		select {
		case m := <-got:
			_, v, _ := strings.Cut(m, `"v":`)
			seen[v] = true
		case <-deadline:
			t.Fatalf("the application got %d of %d messages", len(seen), n)
		}
	}
}

func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed (Debian: apt-get install mosquitto-clients)", name)
	}
	return path
}

// mosquitto runs a client of Eclipse Mosquitto against g and returns what it prints.
func mosquitto(t *testing.T, g *Gateway, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	host, port, _ := strings.Cut(g.Addr().String(), ":")
	out, err := exec.CommandContext(ctx, tool(t, name), append([]string{"-h", host, "-p", port}, args...)...).CombinedOutput()
	return string(out), err
}

// TestMosquitto: mosquitto_pub and mosquitto_sub, with each version and QoS, with and without credentials.
func TestMosquitto(t *testing.T) {
	sub := tool(t, "mosquitto_sub")
	j := newJournal(4)
	s := &shelf{auto: true, log: j}
	g := serve(t, Config{}, Deps{Ingestor: s, Feed: j, Auth: closedAuth{}})
	for _, version := range []string{"mqttv311", "mqttv5"} {
		for qos := range 3 {
			t.Run(fmt.Sprint(version, "/qos=", qos), func(t *testing.T) {
				host, port, _ := strings.Cut(g.Addr().String(), ":")
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				cmd := exec.CommandContext(ctx, sub, "-h", host, "-p", port, "-V", version, "-q", "1", "-u", "app", "-P", "secret",
					"-t", "d/+/t", "-t", "d/+/a", "-v", "-C", "2")
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				lines := bufio.NewScanner(out)
				eventually(t, "mosquitto_sub has subscribed", func() bool { return subscriptions(g) == 2 })
				text, err := mosquitto(t, g, "mosquitto_pub", "-V", version, "-q", fmt.Sprint(qos), "-u", "d1", "-P", "secret",
					"-t", "d/d1/t", "-m", `[{"n":"temperature","u":"Cel","v":4.5}]`)
				if err != nil {
					t.Fatalf("mosquitto_pub: %v: %s", err, text)
				}
				v := 9.0
				eventually(t, "the reading is committed", func() bool { return len(s.lines()) > 0 })
				j.add(dunlin.Change{DeviceKey: dunlin.DeviceKey{Tenant: "default", Device: "d1"}, Version: 9, Alerts: []dunlin.Alert{
					{Tenant: "default", Device: "d1", Rule: "warm", Severity: dunlin.Critical, State: dunlin.AlertRaised, Value: &v, Seq: 9}}})
				var got []string
				for lines.Scan() {
					if strings.HasPrefix(lines.Text(), "d/") {
						got = append(got, lines.Text())
					}
				}
				if err := cmd.Wait(); err != nil || len(got) != 2 {
					t.Fatalf("mosquitto_sub: %v, got %q", err, got)
				}
				if !strings.HasPrefix(got[0], `d/d1/t [{"bn":"d1/"`) || !strings.Contains(got[0], `"n":"temperature","u":"Cel","v":4.5}]`) {
					t.Errorf("got %s", got[0])
				}
				var a dunlin.Alert
				if err := json.Unmarshal([]byte(strings.TrimPrefix(got[1], "d/d1/a ")), &a); err != nil || a.Rule != "warm" ||
					a.State != dunlin.AlertRaised || *a.Value != 9 || a.Seq != 9 {
					t.Errorf("got %s (%v)", got[1], err)
				}
				eventually(t, "the subscriber is gone", func() bool { return subscriptions(g) == 0 })
			})
		}
	}
	t.Run("refused", func(t *testing.T) {
		for _, args := range [][]string{
			{"-u", "d1", "-P", "wrong", "-t", "d/d1/t", "-m", "1"},
			{"-u", "d1", "-P", "secret", "-V", "mqttv5", "-q", "1", "-t", "d/d2/t", "-m", "1", "-d"},
		} {
			out, err := mosquitto(t, g, "mosquitto_pub", args...)
			if err == nil && !strings.Contains(strings.ToLower(out), "not authorized") && !strings.Contains(out, "135") {
				t.Errorf("%v: %v, %s", args, err, out)
			}
		}
	})
}

func subscriptions(g *Gateway) (n int) {
	g.sessions.mu.Lock()
	defer g.sessions.mu.Unlock()
	for _, s := range g.sessions.mu.byKey {
		s.mu.Lock()
		n += len(s.mu.subs)
		s.mu.Unlock()
	}
	return n
}

// TestMosquittoLines: one connection, a thousand readings from standard input, all acked.
func TestMosquittoLines(t *testing.T) {
	tool(t, "mosquitto_pub")
	s := &shelf{auto: true}
	g := serve(t, Config{}, Deps{Ingestor: s})
	var in strings.Builder
	for i := range 1000 {
		fmt.Fprintln(&in, i)
	}
	host, port, _ := strings.Cut(g.Addr().String(), ":")
	cmd := exec.CommandContext(t.Context(), "mosquitto_pub", "-h", host, "-p", port, "-q", "1", "-t", "d/d1/t", "-l")
	cmd.Stdin = strings.NewReader(in.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lines := s.lines()
	if len(lines) != 1000 || !strings.HasSuffix(lines[999], "value=999") {
		t.Errorf("got %d uplinks", len(lines))
	}
}
