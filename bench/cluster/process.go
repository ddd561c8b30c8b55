package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/dunlin-iot/dunlin/bench/floor"
)

// process is a measured process.
type process struct {
	name string
	args []string
	env  []string
	cmd  *exec.Cmd
	HTTP string `json:"http"`
	MQTT string `json:"mqtt"`
	CoAP string `json:"coap"`
	// Admin is where profiles come from; "" for the floor.
	Admin string `json:"admin"`
}

// start starts the process and reads its readiness line. args begin with the program.
func (p *process) start(ctx context.Context) error {
	p.cmd = exec.Command(p.args[0], p.args[1:]...)
	p.cmd.Env = append(os.Environ(), p.env...)
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	late := time.AfterFunc(90*time.Second, func() { _ = p.cmd.Process.Kill() }) // it may be gone already
	defer late.Stop()
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, p)
	}
	if err != nil {
		p.stop()
		return fmt.Errorf("%s said %q: %w", p.name, line, err)
	}
	go io.Copy(io.Discard, out)
	return ctx.Err()
}

// stop ends the process in order.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may be gone already
	late := time.AfterFunc(20*time.Second, func() { _ = p.cmd.Process.Kill() })
	_ = p.cmd.Wait() // its exit code is not what is measured
	late.Stop()
}

// kill ends the process as a power cut would, but for the disk.
func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil {
		return err
	}
	_ = p.cmd.Wait() // says that it was killed
	return nil
}

// cpu is the process's user and system time so far, in seconds.
func (p *process) cpu() float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	u, _ := strconv.ParseFloat(f[11], 64)
	k, _ := strconv.ParseFloat(f[12], 64)
	return (u + k) / 100 // USER_HZ is 100 on Linux
}

// rss is the process's resident memory in bytes.
func (p *process) rss() int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	pages, _ := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// profileFor keeps a CPU profile of the next d and a heap profile in dir, if there is one; it returns at once.
func (p *process) profileFor(dir, part string, d time.Duration) {
	if dir == "" || p.Admin == "" {
		return
	}
	for kind, query := range map[string]string{"cpu": fmt.Sprintf("profile?seconds=%d", max(1, int(d.Seconds()))), "heap": "heap"} {
		go func() {
			if err := fetch("http://"+p.Admin+"/debug/pprof/"+query, filepath.Join(dir, part+"-"+p.name+"-"+kind+".pprof")); err != nil {
				say("profile: %v", err)
			}
		}()
	}
}

// metricsTo keeps the metrics as they are now in dir, if there is one.
func (p *process) metricsTo(dir, part string) {
	if dir == "" || p.Admin == "" {
		return
	}
	if err := fetch("http://"+p.Admin+"/metrics", filepath.Join(dir, part+"-"+p.name+"-metrics.txt")); err != nil {
		say("metrics: %v", err)
	}
}

func fetch(url, file string) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	_, err = io.Copy(out, resp.Body)
	return err
}

// serveFloor is the floor as a process of its own, so that its CPU can be told from the load's.
func serveFloor(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("floor", flag.ExitOnError)
	dir := fs.String("dir", "", "data folder")
	if err := fs.Parse(args); err != nil {
		return err
	}
	s, err := floor.Start(floor.Config{Dir: *dir, MQTT: "127.0.0.1:0", CoAP: "127.0.0.1:0"})
	if err != nil {
		return err
	}
	fmt.Printf(`{"mqtt":"%s","coap":"%s"}`+"\n", s.MQTT(), s.CoAP())
	s.Wait(ctx)
	return nil
}
