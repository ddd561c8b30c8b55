package main_test

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs the command lines of testdata/script against a node of their own ($DUNLIN_SERVER, $MQTT, $COAP).
func TestScripts(t *testing.T) {
	n := start(t, "dev", "--sim", "0")
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: os.Getenv("UPDATE") != "",
		Setup: func(e *testscript.Env) error {
			module, err := os.ReadFile(filepath.Join("internal", "builtin", "modules", "cold-chain.wasm"))
			if err != nil {
				return err
			}
			e.Setenv("PATH", filepath.Dir(binary)+string(os.PathListSeparator)+os.Getenv("PATH"))
			page, err := filepath.Abs("../../docs/alarms.md")
			if err != nil {
				return err
			}
			e.Setenv("ALARMS_MD", page)
			e.Setenv("DUNLIN_SERVER", n.HTTP)
			e.Setenv("MQTT", n.MQTT)
			e.Setenv("COAP", n.CoAP)
			return os.WriteFile(filepath.Join(e.WorkDir, "my-rule.wasm"), module, 0o644)
		},
	})
}

// The lines that the README marks as shell work one after the other, on a fresh `dunlin dev`.
func TestReadmeLinesWork(t *testing.T) {
	foreign(t, "mosquitto_pub")
	foreign(t, "curl")
	coap := foreign(t, "coap-client-notls", "coap-client", "coap-client-openssl", "coap-client-gnutls")
	n := start(t, "dev", "--sim", "0")
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	here := strings.NewReplacer("127.0.0.1:8080", n.HTTP, "127.0.0.1:5683", n.CoAP, "-p 1883", "-p "+port(n.MQTT), "coap-client ", coap+" ",
		"bin/dunlin", binary, "-o my-rule.wasm", "-o "+filepath.Join(t.TempDir(), "my-rule.wasm"))
	wasm := ""
	lines := 0
	for _, block := range strings.Split(string(readme), "```sh\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		for line := range strings.Lines(block) {
			line = strings.TrimSpace(here.Replace(line))
			if line == "" {
				continue
			}
			if _, out, ok := strings.Cut(line, "-o "); ok && strings.Contains(line, "go build") {
				wasm, _, _ = strings.Cut(out, " ")
			}
			if wasm != "" && strings.Contains(line, "plugin push") {
				line = strings.Replace(line, "my-rule.wasm", wasm, 1)
			}
			cmd := exec.CommandContext(t.Context(), "sh", "-e", "-c", line)
			cmd.Dir = "../.."
			cmd.Env = append(os.Environ(), "DUNLIN_SERVER="+n.HTTP, "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", line, err, out)
			}
			lines++
		}
	}
	if lines < 8 {
		t.Errorf("only %d lines found in the README", lines)
	}
}

// A server with credentials: devices need theirs, and touch only their own subtree; the operator's token opens the API.
func TestCredentialsAreAskedFor(t *testing.T) {
	pub := foreign(t, "mosquitto_pub")
	coap := foreign(t, "coap-client-notls", "coap-client", "coap-client-openssl", "coap-client-gnutls")
	const token = "an-operators-token-of-some-length"
	file := filepath.Join(t.TempDir(), "dunlin.yaml")
	text := "api_token: " + token + "\ndefault_domain: plant\ncredentials:\n- {id: press-1, secret: press-1-has-a-secret, domain: plant}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	n := start(t, "server", "--config", file, "--data", t.TempDir())
	call := func(method, path, body, bearer string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+n.HTTP+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if bearer != "" {
			req.Header.Set("Authorization", "Bearer "+bearer)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	if got := call("GET", "/v1/devices", "", ""); got != 401 {
		t.Errorf("without a token: %d", got)
	}
	domain, err := json.Marshal(map[string]any{"id": "plant", "owner": "o", "unknown_devices": "register"})
	if err != nil {
		t.Fatal(err)
	}
	if got := call("PUT", "/v1/domains/plant", string(domain), token); got/100 != 2 {
		t.Errorf("PUT domain: %d", got)
	}
	mqtt := func(topic string, auth ...string) error {
		args := append([]string{"-V", "mqttv5", "-h", "127.0.0.1", "-p", port(n.MQTT), "-q", "1", "-t", topic, "-m", `{"temp":1}`}, auth...)
		out, err := exec.CommandContext(t.Context(), pub, args...).CombinedOutput()
		if err == nil && strings.Contains(string(out), "Not authorized") {
			return os.ErrPermission
		}
		return err
	}
	if err := mqtt("d/press-1/t"); err == nil {
		t.Error("MQTT without a password was let in")
	}
	if err := mqtt("d/press-1/t", "-u", "press-1", "-P", "press-1-has-a-secret"); err != nil {
		t.Errorf("MQTT with its password: %v", err)
	}
	if err := mqtt("d/press-2/t", "-u", "press-1", "-P", "press-1-has-a-secret"); err == nil {
		t.Error("press-1 sent as press-2")
	}
	for query, want := range map[string]string{"": "4.01", "?k=wrong-secret-wrong": "4.01", "?k=press-1-has-a-secret": "2.04"} {
		out := command(t, coap, "-v", "6", "-m", "post", "-t", "50", "-e", `{"temp":2}`, "coap://"+n.CoAP+"/d/press-1/t"+query)
		if !strings.Contains(out, want) {
			t.Errorf("CoAP %q: no %s in %s", query, want, out)
		}
	}
	deadline := time.Now().Add(5 * time.Second)
	for call("GET", "/v1/devices/press-1/state", "", token) != 200 && time.Now().Before(deadline) {
		<-time.After(20 * time.Millisecond)
	}
	if got := call("GET", "/v1/devices/press-2", "", token); got != 404 {
		t.Errorf("press-2 is there: %d", got)
	}
}
