package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// server is a measured process.
type server struct {
	name string
	cmd  *exec.Cmd
	dir  string
	HTTP string `json:"http"`
	MQTT string `json:"mqtt"`
	CoAP string `json:"coap"`
	PID  int    `json:"pid"`
	// Admin is where profiles come from; "" for the floor.
	Admin string `json:"admin"`
}

// startFloor runs this very binary as the floor.
func startFloor(ctx context.Context, _ options) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "dunlin-bench-floor-")
	if err != nil {
		return nil, err
	}
	return start(ctx, &server{name: "floor", dir: dir, cmd: exec.Command(self, "floor", "-dir", filepath.Join(dir, "db"))})
}

// startDunlin runs a real node with the example domain: its plugin sees every reading.
func startDunlin(ctx context.Context, o options) (*server, error) {
	dir, err := os.MkdirTemp("", "dunlin-bench-node-")
	if err != nil {
		return nil, err
	}
	return start(ctx, &server{name: "dunlin", dir: dir, cmd: exec.Command(o.dunlin, "dev", "--sim", "0", "-o", "json", "--data", filepath.Join(dir, "data"),
		"--http", "127.0.0.1:0", "--mqtt", "127.0.0.1:0", "--coap", "127.0.0.1:0", "--admin", "127.0.0.1:0")})
}

// start starts the process and reads its readiness line.
func start(ctx context.Context, s *server) (*server, error) {
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.cmd.Stderr = os.Stderr
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	kill := time.AfterFunc(60*time.Second, func() { _ = s.cmd.Process.Kill() }) // it may be gone already
	defer kill.Stop()
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, s)
	}
	if err != nil {
		s.stop()
		return nil, fmt.Errorf("%s said %q: %w", s.name, line, err)
	}
	go io.Copy(io.Discard, out)
	return s, ctx.Err()
}

func (s *server) addr(protocol string) string {
	if protocol == "coap" {
		return s.CoAP
	}
	return s.MQTT
}

// stop ends the process and removes its data.
func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may be gone already
	kill := time.AfterFunc(10*time.Second, func() { _ = s.cmd.Process.Kill() })
	_ = s.cmd.Wait() // its exit code is not what is measured
	kill.Stop()
	os.RemoveAll(s.dir)
}

// cpu is the process's user and system time so far, in seconds.
func (s *server) cpu() float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	u, _ := strconv.ParseFloat(f[11], 64)
	k, _ := strconv.ParseFloat(f[12], 64)
	return (u + k) / 100 // USER_HZ is 100 on Linux
}

// rss is the process's resident memory in bytes.
func (s *server) rss() int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", s.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	pages, _ := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// disk is what the data folder takes now.
func (s *server) disk() int64 {
	var sum int64
	_ = filepath.WalkDir(s.dir, func(_ string, d fs.DirEntry, err error) error { // files come and go meanwhile
		if err == nil && !d.IsDir() {
			if info, err := d.Info(); err == nil {
				if st, ok := info.Sys().(*syscall.Stat_t); ok {
					sum += st.Blocks * 512
				}
			}
		}
		return nil
	})
	return sum
}
