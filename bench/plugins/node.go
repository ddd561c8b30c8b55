package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/sdk/client"
)

// node is a real one, a process of its own.
type node struct {
	cmd    *exec.Cmd
	dir    string
	client *client.Client
	HTTP   string `json:"http"`
	MQTT   string `json:"mqtt"`
	CoAP   string `json:"coap"`
}

func startNode(ctx context.Context, o options) (*node, error) {
	dir, err := os.MkdirTemp(o.work, "node-")
	if err != nil {
		return nil, err
	}
	n := &node{dir: dir, cmd: exec.Command(o.dunlin, "dev", "--sim", "0", "-o", "json", "--log-level", "error", "--data", filepath.Join(dir, "data"),
		"--http", "127.0.0.1:0", "--mqtt", "127.0.0.1:0", "--coap", "127.0.0.1:0")}
	out, err := n.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	n.cmd.Stderr = os.Stderr
	if err := n.cmd.Start(); err != nil {
		return nil, err
	}
	kill := time.AfterFunc(time.Minute, func() { _ = n.cmd.Process.Kill() }) // it may be gone already
	defer kill.Stop()
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, n)
	}
	if err == nil {
		n.client, err = client.New("http://"+n.HTTP, client.Options{})
	}
	if err != nil {
		n.stop()
		return nil, fmt.Errorf("the node said %q: %w", line, err)
	}
	go io.Copy(io.Discard, out)
	return n, ctx.Err()
}

// stop ends the process and removes its data.
func (n *node) stop() {
	if n.client != nil {
		n.client.Close()
	}
	_ = n.cmd.Process.Signal(syscall.SIGTERM) // it may be gone already
	kill := time.AfterFunc(10*time.Second, func() { _ = n.cmd.Process.Kill() })
	_ = n.cmd.Wait() // its exit code is not what is measured
	kill.Stop()
	os.RemoveAll(n.dir)
}

// cpu is the process's user and system time so far, in seconds.
func (n *node) cpu() float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	u, _ := strconv.ParseFloat(f[11], 64)
	k, _ := strconv.ParseFloat(f[12], 64)
	return (u + k) / 100 // USER_HZ is 100 on Linux
}

// push uploads a module and makes it the active version.
func (n *node) push(ctx context.Context, name string, wasm []byte) error {
	_, err := n.client.BringVersion(ctx, dunlin.PluginSettings{Name: name, Activate: true, Source: "upload", IfRevision: dunlin.AnyRevision}, wasm)
	return err
}

// domain puts a domain with one plugin, and so many devices of each prefix, as package load calls them.
func (n *node) domain(ctx context.Context, id, plugin, config string, devices int, prefixes ...string) error {
	_, err := n.client.PutDomain(ctx, dunlin.Domain{ID: dunlin.DomainID(id), Owner: "bench",
		Pipeline: []dunlin.PluginUse{{Plugin: plugin, Config: json.RawMessage(config)}}}, dunlin.AnyRevision)
	if err != nil {
		return err
	}
	for i := range devices * len(prefixes) {
		dev := dunlin.Device{ID: dunlin.DeviceID(fmt.Sprintf("%s-%06d", prefixes[i%len(prefixes)], i/len(prefixes))), Domain: dunlin.DomainID(id)}
		if _, err := n.client.PutDevice(ctx, dev, dunlin.AnyRevision); err != nil {
			return err
		}
	}
	return nil
}

// uploads measures from the first byte of an upload to the version that runs, on a node that has never seen the module.
func uploads(ctx context.Context, o options) error {
	fmt.Printf("Upload to active, over HTTP, on a new node (medians of %d)\n", o.runs)
	for _, l := range languages() {
		wasm, ok, err := l.module(o)
		if err != nil {
			return err
		}
		if !ok {
			fmt.Printf("  %-16s %s\n", l.name, l.notBuilt())
			continue
		}
		took, err := median(o, func() (float64, error) { return upload(ctx, o, wasm) })
		if err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		fmt.Printf("  %-16s %10.2f s  %s\n", l.name, took, verdict(took < l.goals.upload, fmt.Sprintf("< %v s", l.goals.upload)))
	}
	return nil
}

func upload(ctx context.Context, o options, wasm []byte) (float64, error) {
	n, err := startNode(ctx, o)
	if err != nil {
		return 0, err
	}
	defer n.stop()
	began := time.Now()
	if err := n.push(ctx, "threshold", wasm); err != nil {
		return 0, err
	}
	return time.Since(began).Seconds(), nil
}
