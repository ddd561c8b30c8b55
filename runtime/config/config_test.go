package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func none(string) string { return "" }

func TestLoadLaterWins(t *testing.T) {
	file := filepath.Join(t.TempDir(), "dunlin.yaml")
	text := "http: 127.0.0.1:9000\nmqtt: 127.0.0.1:9001\nwindow_max: 2ms\nshards: 8\ncredentials:\n- {id: fridge-1, secret: twelve-bytes!}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	env := func(k string) string {
		return map[string]string{"DUNLIN_MQTT": "127.0.0.1:9101", "DUNLIN_COAP": "127.0.0.1:9102"}[k]
	}
	c, err := Load(file, env, map[string]any{"coap": "127.0.0.1:9202"})
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join([]string{c.HTTP, c.MQTT, c.CoAP, c.Data}, " ")
	if want := "127.0.0.1:9000 127.0.0.1:9101 127.0.0.1:9202 dunlin-data"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if c.WindowMax != 2*time.Millisecond || c.Shards != 8 || len(c.Credentials) != 1 || c.Credentials[0].ID != "fridge-1" {
		t.Errorf("got %+v", c)
	}
}

func TestBadSettingsAreAllNamed(t *testing.T) {
	_, err := Load("", none, map[string]any{"http": "nowhere", "shards": 0, "admin": "0.0.0.0:6060", "api_token": "short",
		"window_max": "1s", "log_level": "loud", "log_format": "xml", "default_domain": "a/b",
		"plugin_call_time": "5s", "plugin_domain_time": "1us", "plugin_tenant_time": "-1s", "plugin_memory_bytes": 1, "plugins_memory_bytes": -1})
	for _, want := range []string{"plugin_call_time:", "plugin_domain_time:", "plugin_tenant_time:", "plugin_memory_bytes:", "plugins_memory_bytes:",
		"http:", "shards:", "admin:", "api_token:", "window_max:", "log_level:", "log_format:", "default_domain:"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not in %v", want, err)
		}
	}
}

func TestMembersToJoinComeWithCommas(t *testing.T) {
	env := func(k string) string { return map[string]string{"DUNLIN_JOIN": "10.0.0.1, 10.0.0.2:7000,"}[k] }
	c, err := Load("", env, map[string]any{"cluster": "10.0.0.3:7946"})
	if err != nil || strings.Join(c.Join, "|") != "10.0.0.1|10.0.0.2:7000" {
		t.Errorf("from the environment: %q, %v", c.Join, err)
	}
	c, err = Load("", env, map[string]any{"cluster": "10.0.0.3:7946", "join": "dns:nodes.example"})
	if err != nil || strings.Join(c.Join, "|") != "dns:nodes.example" {
		t.Errorf("from a flag: %q, %v", c.Join, err)
	}
	file := filepath.Join(t.TempDir(), "dunlin.yaml")
	if err := os.WriteFile(file, []byte("cluster: 10.0.0.3:7946\njoin: [10.0.0.1, 10.0.0.2]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err = Load(file, none, nil)
	if err != nil || strings.Join(c.Join, "|") != "10.0.0.1|10.0.0.2" {
		t.Errorf("from a file: %q, %v", c.Join, err)
	}
}

func TestUnknownKeyIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "dunlin.yaml")
	if err := os.WriteFile(file, []byte("htpp: 127.0.0.1:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(file, none, nil); err == nil || !strings.Contains(err.Error(), `unknown key "htpp"`) {
		t.Errorf("got %v", err)
	}
}

func TestLoopback(t *testing.T) {
	for addr, want := range map[string]bool{"127.0.0.1:1": true, "[::1]:1": true, "localhost:1": true, "127.9.9.9:1": true,
		":1": false, "0.0.0.0:1": false, "[::]:1": false, "10.0.0.1:1": false, "example.com:1": false, "x": false} {
		if got := Loopback(addr); got != want {
			t.Errorf("Loopback(%q) = %v", addr, got)
		}
	}
}
