package main_test

import (
	binenc "encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type commandList struct {
	Items []struct {
		ID       string    `json:"id"`
		Name     string    `json:"name"`
		Deadline time.Time `json:"deadline"`
	} `json:"items"`
}

// manifest puts a manifest into a module, as dunlin plugin build does.
func manifest(t *testing.T, module, json string) {
	t.Helper()
	const name = "dunlin.manifest"
	body := append(append([]byte{byte(len(name))}, name...), json...)
	section := append(binenc.AppendUvarint([]byte{0}, uint64(len(body))), body...) // a custom one
	f, err := os.OpenFile(module, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.Write(section)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestCommands: what a plugin asks of a device reaches it over MQTT, HTTP and CoAP; its answer reaches the plugin, and what that
// publishes the application. A command outlives its node, which says when its deadline has passed.
func TestCommands(t *testing.T) {
	pub, curl := foreign(t, "mosquitto_pub"), foreign(t, "curl")
	dir := t.TempDir()
	module := filepath.Join(dir, "valve.wasm")
	if err := goBuild([]string{"GOOS=wasip1", "GOARCH=wasm"}, "-trimpath", "-ldflags", "-s -w", "-buildmode=c-shared", "-o", module, "./testdata/valve"); err != nil {
		t.Fatal(err)
	}
	manifest(t, module, `{"name":"valve","version":"1.0.0","capabilities":["command","publish"]}`)
	domain := filepath.Join(dir, "d.yaml")
	if err := os.WriteFile(domain, []byte("id: halls\nowner: o\nunknown_devices: register\npipeline: [{plugin: valve}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	dev := []string{"dev", "--sim", "0", "--data", filepath.Join(dir, "data"), "-o", "json"}
	n := launch(t, exec.Command(binary, append(dev, "--http", "127.0.0.1:0", "--mqtt", "127.0.0.1:0", "--coap", "127.0.0.1:0")...))
	n.run("plugin", "push", module, "--name", "valve")
	n.run("apply", "-f", domain)
	n.run("device", "add", "hall", "--domain", "halls")
	lines := func(args []string) func(...string) string { // mosquitto_sub keeps what it logs to itself otherwise
		return stream(t, foreign(t, "stdbuf"), append([]string{"-oL", foreign(t, "mosquitto_sub")}, args...)...)
	}
	to := func(n *node, args ...string) []string {
		return append([]string{"-h", "127.0.0.1", "-p", port(n.MQTT), "-q", "1"}, args...)
	}
	device := lines(to(n, "-V", "mqttv5", "-i", "hall", "-c", "-x", "600", "-t", "d/hall/c/+/req/+", "-F", "%t %p %R %D", "-d"))
	application := lines(to(n, "-t", "p/+/valve/#", "-t", "d/+/c/#", "-v", "-d"))
	events := stream(t, curl, "-s", "-N", "http://"+n.HTTP+"/v1/events?types=command,publication&device=hall")
	events("dunlin events")
	device("Subscribed")
	application("Subscribed")

	command(t, pub, to(n, "-t", "d/hall/t", "-m", `{"temp": 600}`)...)
	asked := strings.Fields(device("d/hall/c/", "/req/close", `{"valve":1}`))
	answer, id := asked[2], asked[3]
	if answer != strings.Replace(asked[0], "/req/close", "/res", 1) || answer != "d/hall/c/"+id+"/res" {
		t.Errorf("asked %q", asked)
	}
	application(asked[0])
	application("p/hall/valve/asked close")
	events(`"state":"waiting"`, `"id":"`+id+`"`, `"json":{"valve":1}`)
	events(`"topic":"valve/asked"`)
	var list commandList
	if n.get("/v1/devices/hall/c", &list); len(list.Items) != 1 || list.Items[0].ID != id || list.Items[0].Name != "close" {
		t.Errorf("list over HTTP: %+v", list)
	}
	coap := foreign(t, "coap-client-notls", "coap-client")
	if out := command(t, coap, "-v", "0", "-B", "5", "-m", "get", "coap://"+n.CoAP+"/d/hall/c"); !strings.Contains(out, `"id":"`+id+`","name":"close"`) {
		t.Errorf("list over CoAP: %s", out)
	}
	command(t, pub, to(n, "-t", answer, "-m", "shut")...)
	application("p/hall/valve/closed shut")
	events(`"state":"answered"`, `"id":"`+id+`"`)
	if n.get("/v1/devices/hall/c", &list); len(list.Items) != 0 {
		t.Errorf("answered, and still there: %+v", list)
	}

	// The other doors, and an answer too many.
	post(t, n, "hall", `{"temp": 601}`)
	id = strings.Fields(device("/req/close", `{"valve":1}`))[3]
	if out := command(t, curl, "-s", "-X", "POST", "http://"+n.HTTP+"/v1/devices/hall/c/"+id); !strings.Contains(out, `"seq":`) {
		t.Errorf("answer over HTTP: %s", out)
	}
	if out := command(t, curl, "-s", "-X", "POST", "http://"+n.HTTP+"/v1/devices/hall/c/"+id); !strings.Contains(out, "not-found") {
		t.Errorf("a second answer: %s", out)
	}
	post(t, n, "hall", `{"temp": 602}`)
	id = strings.Fields(device("/req/close", `{"valve":1}`))[3]
	if out := command(t, coap, "-v", "0", "-B", "5", "-m", "post", "-e", "by hand", "coap://"+n.CoAP+"/d/hall/c/"+id); strings.TrimSpace(out) != "" {
		t.Errorf("answer over CoAP: %s", out)
	}
	application("p/hall/valve/closed by hand")

	// Refused alone: the other reading of the message counts.
	post(t, n, "hall", `{"dirt": 1}`)
	if out := n.run("get", "deadletters"); !strings.Contains(out, "dirt") {
		t.Errorf("dead letters: %s", out)
	}

	// A command of nine seconds: its node dies, and the one after it says that nobody answered.
	post(t, n, "hall", `{"temp": 9}`)
	id = strings.Fields(device("/req/close", `{"valve":1}`))[3]
	n.kill()
	n = launch(t, exec.Command(binary, append(dev, "--http", n.HTTP, "--mqtt", n.MQTT, "--coap", n.CoAP)...))
	if n.get("/v1/devices/hall/c", &list); len(list.Items) != 1 || list.Items[0].ID != id {
		t.Errorf("after a restart: %+v", list)
	}
	again := stream(t, curl, "-s", "-N", "http://"+n.HTTP+"/v1/events?types=command,publication&device=hall")
	again(`"state":"timed_out"`, `"id":"`+id+`"`)
	again(`"topic":"valve/lost"`, `"text":"`+id+`"`)
	if late := time.Since(list.Items[0].Deadline); late < 0 || late > 3*time.Second {
		t.Errorf("told %v after the deadline", late)
	}
	if n.get("/v1/devices/hall/c", &list); len(list.Items) != 0 {
		t.Errorf("timed out, and still there: %+v", list)
	}
}
