package main_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const operatorsToken = "an-operators-token-of-some-length"

// plant is a node with two domains, a gateway of each and a device.
func plant(t *testing.T) *node {
	t.Helper()
	file := filepath.Join(t.TempDir(), "dunlin.yaml")
	text := `api_token: ` + operatorsToken + `
default_domain: plant
credentials:
- {id: press-1, secret: press-1-has-a-secret, domain: plant}
- {id: hall-gw, kind: gateway, secret: the-halls-gateway, domain: plant}
- {id: yard-gw, kind: gateway, secret: the-yards-gateway, domain: yard}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	n := start(t, "server", "--config", file, "--data", t.TempDir())
	for _, id := range []string{"plant", "yard"} {
		domain := `{"id":"` + id + `","owner":"o","unknown_devices":"register"}`
		if status, body := n.call(t, "PUT", "/v1/domains/"+id, domain, "Bearer "+operatorsToken); status/100 != 2 {
			t.Fatalf("PUT domain %s: %d %s", id, status, body)
		}
	}
	return n
}

// call is one HTTP request with credentials; headers are names and values by turns.
func (n *node) call(t *testing.T, method, path, body, authorization string, headers ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+n.HTTP+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", authorization)
	req.Header.Set("Content-Type", "application/json")
	if strings.HasPrefix(body, "[") {
		req.Header.Set("Content-Type", "application/senml+json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(out)
}

// holds checks a device's domain, the number of uplinks it has had, and its newest temperature.
func (n *node) holds(t *testing.T, device, domain string, version uint64, temp float64) {
	t.Helper()
	status, text := n.call(t, "GET", "/v1/devices/"+device+"/state", "", "Bearer "+operatorsToken)
	var tw twin
	if err := json.Unmarshal([]byte(text), &tw); err != nil || status != 200 {
		t.Errorf("state of %s: %d %v %s", device, status, err, text)
		return
	}
	if tw.Domain != domain || tw.Version != version || tw.Reported["temp"].Value != temp {
		t.Errorf("%s is %+v, want version %d in %s at %g", device, tw, version, domain, temp)
	}
}

// A gateway sends for the devices of its domain, several in one payload or one under its own name, through every door and
// with clients that nobody here wrote. A device may not name another, and a gateway none of another domain.
func TestGatewaysSpeakForTheirDevices(t *testing.T) {
	pub := foreign(t, "mosquitto_pub")
	coap := foreign(t, "coap-client-notls", "coap-client", "coap-client-openssl", "coap-client-gnutls")
	n := plant(t)
	// Each sends a payload to d/{to}/t and returns what its client says.
	mqtt := func(to, user, secret, body string) string {
		out, _ := exec.CommandContext(t.Context(), pub, "-d", "-V", "mqttv5", "-h", "127.0.0.1", "-p", port(n.MQTT), "-q", "1", "-t", "d/"+to+"/t",
			"-i", user, "-u", user, "-P", secret, "-m", body).CombinedOutput() // what it says counts
		return string(out)
	}
	udp := func(to, user, secret, body string) string {
		return command(t, coap, "-v", "6", "-m", "post", "-t", "110", "-e", body, "coap://"+n.CoAP+"/d/"+to+"/t?u="+user+"&k="+secret)
	}
	basic := func(user, secret string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+secret))
	}
	web := func(to, user, secret, body string) string {
		status, text := n.call(t, "POST", "/v1/devices/"+to+"/t", body, basic(user, secret))
		return fmt.Sprint("status ", status, " ", text)
	}
	for _, door := range []struct {
		name, kept, refused string
		send                func(to, user, secret, body string) string
	}{
		{name: "m", kept: "RC:0", refused: "RC:135", send: mqtt},
		{name: "c", kept: "2.04", refused: "4.03", send: udp},
		{name: "h", kept: "status 200", refused: "status 403", send: web},
	} {
		t.Run(door.name, func(t *testing.T) {
			a, b, yard := "a-"+door.name, "b-"+door.name, "yard-"+door.name
			pack := func(first, second, temp string) string {
				return `[{"bn":"urn:dev:ow:` + first + `:","n":"temp","v":` + temp + `},{"bn":"urn:dev:ow:` + second + `:","n":"temp","v":` + temp + `}]`
			}
			say := func(what, want, out string) {
				t.Helper()
				if !strings.Contains(out, want) {
					t.Errorf("%s: no %q in %s", what, want, out)
				}
			}
			say("two devices", door.kept, door.send("hall-gw", "hall-gw", "the-halls-gateway", pack(a, b, "1")))
			n.holds(t, a, "plant", 1, 1)
			n.holds(t, b, "plant", 1, 1)
			say("to one device's address", door.kept, door.send(a, "hall-gw", "the-halls-gateway", `[{"n":"temp","v":2}]`))
			n.holds(t, a, "plant", 2, 2)
			say("to one, about another", door.kept, door.send(a, "hall-gw", "the-halls-gateway", pack(a, b, "3")))
			n.holds(t, a, "plant", 3, 3)
			n.holds(t, b, "plant", 2, 3)

			out := door.send("yard-gw", "yard-gw", "the-yards-gateway", pack(a, yard, "4"))
			say("a gateway of another domain", door.refused, out)
			if door.name != "m" { // mosquitto_pub doesn't print reasons
				say("the refusal", "device "+a+": not allowed", out)
			}
			n.holds(t, a, "plant", 3, 3)
			n.holds(t, yard, "yard", 1, 4)
			say("its address is another's", door.refused, door.send(b, "yard-gw", "the-yards-gateway", `[{"n":"temp","v":5}]`))
			n.holds(t, b, "plant", 2, 3)

			say("a device names another", door.refused, door.send("press-1", "press-1", "press-1-has-a-secret", pack("press-1", a, "6")))
			n.holds(t, a, "plant", 3, 3)
		})
	}
	for range 2 { // sent again, a part that is kept is not kept twice
		status, text := n.call(t, "POST", "/v1/devices/hall-gw/t", `[{"bn":"urn:dev:ow:again:","n":"temp","v":7},{"bn":"urn:dev:ow:yard-h:","n":"temp","v":7}]`,
			basic("hall-gw", "the-halls-gateway"), "Idempotency-Key", "one")
		if status != 403 || !strings.Contains(text, "device yard-h: not allowed") {
			t.Errorf("half of it another domain's: %d %s", status, text)
		}
		n.holds(t, "again", "plant", 1, 7)
	}
	for _, id := range []string{"hall-gw", "yard-gw", "press-1"} {
		if status, _ := n.call(t, "GET", "/v1/devices/"+id, "", "Bearer "+operatorsToken); status != 404 {
			t.Errorf("%s became a device without a reading of its own: %d", id, status)
		}
	}
}
