package main_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// twin is what these tests look at of a device's state.
type twin struct {
	Version  uint64 `json:"version"`
	Domain   string `json:"domain"`
	Reported map[string]struct {
		Value any       `json:"value"`
		At    time.Time `json:"at"`
	} `json:"reported"`
	Alerts []struct {
		Rule  string `json:"rule"`
		State string `json:"state"`
	} `json:"alerts"`
}

// sendTooWarm makes a device's temperatures by a door; five of 9.5 °C raise the example domain's alert.
type sendTooWarm func(t *testing.T, n *node, device string, temp float64)

// One reading, the whole way: in by each door with a client that nobody here wrote, out as state, history and alert over
// HTTP, as a server-sent event and over MQTT.
func TestEachDoorTheWholeWay(t *testing.T) {
	curl := foreign(t, "curl")
	sub := foreign(t, "mosquitto_sub")
	n := start(t, "dev", "--sim", "0")
	doors := map[string]sendTooWarm{
		"coap": func(t *testing.T, n *node, device string, temp float64) {
			coap := foreign(t, "coap-client-notls", "coap-client", "coap-client-openssl", "coap-client-gnutls")
			out := command(t, coap, "-v", "6", "-m", "post", "-t", "110", "-e", fmt.Sprintf(`[{"bn":"%s:","n":"temp","u":"Cel","v":%g}]`, device, temp),
				"coap://"+n.CoAP+"/d/"+device+"/t")
			if !strings.Contains(out, "2.04") {
				t.Errorf("coap-client: no 2.04 in %s", out)
			}
		},
		"mqtt3": mosquitto("mqttv311"),
		"mqtt5": mosquitto("mqttv5"),
		"http": func(t *testing.T, n *node, device string, temp float64) {
			out := command(t, curl, "-s", "-f", "-H", "Content-Type: application/json", "-d", fmt.Sprintf(`{"temp": %g}`, temp), "http://"+n.HTTP+"/v1/devices/"+device+"/t")
			if !strings.Contains(out, `"seq"`) {
				t.Errorf("curl: no seq in %s", out)
			}
		},
	}
	for name, send := range doors {
		t.Run(name, func(t *testing.T) {
			device := "way-" + name
			alerts := stream(t, foreign(t, "stdbuf"), "-oL", sub, "-h", "127.0.0.1", "-p", port(n.MQTT), "-q", "1", "-t", "d/"+device+"/a", "-t", "d/"+device+"/t", "-v", "-d")
			alerts("Subscribed")
			events := stream(t, curl, "-s", "-N", "http://"+n.HTTP+"/v1/events?device="+device)
			events("retry:")
			for range 5 {
				send(t, n, device, 9.5)
			}
			alerts("d/"+device+"/t", `"temp"`, "9.5")
			alerts("d/"+device+"/a", `"too-warm"`, `"raised"`)
			events("too-warm", "raised")
			for range 5 {
				send(t, n, device, 3.25)
			}
			alerts("d/"+device+"/a", `"too-warm"`, `"cleared"`)
			checkTheWayOut(t, n, curl, device)
		})
	}
}

func mosquitto(version string) sendTooWarm {
	return func(t *testing.T, n *node, device string, temp float64) {
		pub := foreign(t, "mosquitto_pub")
		command(t, pub, "-V", version, "-h", "127.0.0.1", "-p", port(n.MQTT), "-q", "1", "-t", "d/"+device+"/t", "-m", fmt.Sprintf(`{"temp": %g}`, temp))
	}
}

func checkTheWayOut(t *testing.T, n *node, curl, device string) {
	t.Helper()
	var tw twin
	n.get("/v1/devices/"+device+"/state", &tw)
	if tw.Version != 10 || tw.Domain != "cold-chain" || tw.Reported["temp"].Value != 3.25 || len(tw.Alerts) != 0 {
		t.Errorf("twin: %+v", tw)
	}
	var page struct {
		Readings []struct {
			Value any `json:"value"`
		} `json:"readings"`
	}
	n.get("/v1/devices/"+device+"/readings?metric=temp", &page)
	if len(page.Readings) != 10 || page.Readings[0].Value != 9.5 || page.Readings[9].Value != 3.25 {
		t.Errorf("history: %+v", page.Readings)
	}
	out := command(t, curl, "-s", "-f", "http://"+n.HTTP+"/v1/devices/"+device+"/alerts")
	if strings.Count(out, `"too-warm"`) != 1 || !strings.Contains(out, `"cleared"`) {
		t.Errorf("alerts: %s", out)
	}
}

// What is bad gets a clear answer in its protocol's own terms, and the node goes on.
func TestBadInputIsAnswered(t *testing.T) {
	coap := foreign(t, "coap-client-notls", "coap-client", "coap-client-openssl", "coap-client-gnutls")
	curl := foreign(t, "curl")
	n := start(t, "dev", "--sim", "0")
	for payload, want := range map[string]string{`[{"n":"temp"`: "4.00", strings.Repeat("x", 1): "4.00"} {
		out := command(t, coap, "-v", "6", "-m", "post", "-t", "110", "-e", payload, "coap://"+n.CoAP+"/d/bad/t")
		if !strings.Contains(out, want) {
			t.Errorf("CoAP %q: no %s in %s", payload, want, out)
		}
	}
	for _, c := range []struct{ method, path, media, body, want string }{
		{"POST", "/v1/devices/bad/t", "application/senml+json", `[{"n":"temp"`, "400"},
		{"POST", "/v1/devices/bad/t", "application/pdf", `x`, "415"},
		{"POST", "/v1/devices/b%2Fad/t", "application/json", `{"temp":1}`, "400"},
		{"POST", "/v1/devices/bad/t", "application/json", `{"temp":"` + strings.Repeat("x", 70_000) + `"}`, "413"},
		{"GET", "/v1/devices/never-seen/state", "", "", "404"},
		{"PUT", "/v1/plugins/bad", "application/wasm", "not a module", "422"},
		{"GET", "/v1/devices?limit=-3", "", "", "422"},
	} {
		args := []string{"-s", "-X", c.method, "-w", "\n%{http_code} %{content_type}", "http://" + n.HTTP + c.path}
		if c.body != "" {
			args = append(args, "-H", "Content-Type: "+c.media, "--data-binary", c.body)
		}
		out := command(t, curl, args...)
		if last := out[strings.LastIndexByte(out, '\n')+1:]; !strings.HasPrefix(last, c.want) || !strings.Contains(last, "application/problem+json") {
			t.Errorf("%s %s %.40s: want %s and a problem document, got %s", c.method, c.path, c.body, c.want, out)
		}
	}
	var live any
	n.get("/v1/devices", &live)
}

// Of readings without a time that come faster than the clock ticks, none takes another's place.
func TestEveryReadingOfABurstIsKept(t *testing.T) {
	curl := foreign(t, "curl")
	n := start(t, "dev", "--sim", "0")
	publish(t, n, "burst", 1, 200)
	items := ""
	for v := 201; v <= 220; v++ {
		items += fmt.Sprintf(`,{"device":"burst","payload":{"temp":%d}}`, v)
	}
	command(t, curl, "-s", "-f", "-H", "Content-Type: application/json", "-d", "["+items[1:]+"]", "http://"+n.HTTP+"/v1/ingest")
	var page struct{ Readings []struct{ Value int } }
	n.get("/v1/devices/burst/readings?limit=1000", &page)
	for i, r := range page.Readings {
		if r.Value != i+1 {
			t.Errorf("reading %d is %d", i+1, r.Value)
			break
		}
	}
	if len(page.Readings) != 220 {
		t.Errorf("%d of 220 readings are in the history", len(page.Readings))
	}
}
