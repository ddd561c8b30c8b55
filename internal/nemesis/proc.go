package nemesis

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Bounds of a node's life.
const (
	readyMax = 60 * time.Second // from its start to its readiness line
	endMax   = 20 * time.Second // from SIGTERM to its end
)

// proc is a node: its place, and the process that runs there now, if one does.
type proc struct {
	b    *Bench
	i    int // 1 …
	name string
	host string
	data string // its folder
	disk *disk  // nil: a folder of the machine's disk

	lives int // how often it was started

	mu struct {
		sync.Mutex
		cmd      *exec.Cmd
		done     chan struct{} // closed when the process has ended
		expected bool          // its end is the bench's doing
		log      string
	}
}

// pause waits; ctx ends it early.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (p *proc) addr(port int) string { return fmt.Sprintf("%s:%d", p.host, port) }

// Ports of every node, each at its own address.
const (
	portHTTP   = 8080
	portMQTT   = 1883
	portCoAP   = 5683
	portGossip = 7946
)

// start starts the process and waits until it is ready.
func (p *proc) start(ctx context.Context) error {
	ready, err := p.launch(ctx)
	if err != nil {
		return err
	}
	select {
	case err := <-ready:
		return err
	case <-time.After(readyMax):
		return fmt.Errorf("%s is not ready after %v; see %s", p.name, readyMax, p.log())
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// launch starts the process; the channel tells when it is ready.
func (p *proc) launch(ctx context.Context) (<-chan error, error) {
	p.lives++
	name := filepath.Join(p.b.cfg.Dir, "logs", fmt.Sprintf("%s-%03d.log", p.name, p.lives))
	log, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	args := []string{"server", "--cluster", p.addr(portGossip), "--name", p.name, "--data", p.data, "--http", p.addr(portHTTP), "--mqtt", p.addr(portMQTT),
		"--coap", p.addr(portCoAP), "--insecure", "--default-domain", domain, "--log-level", p.b.cfg.LogLevel, "-o", "json"}
	if p.i > 1 {
		args = append(args, "--join", p.b.procs[0].addr(portGossip))
	} else if p.lives > 1 {
		args = append(args, "--join", p.b.procs[1].addr(portGossip))
	}
	cmd := exec.Command(p.b.cfg.Binary, args...) // not CommandContext: how it ends is the bench's to say
	cmd.Env = append(os.Environ(), "DUNLIN_CLUSTER_KEY="+p.b.key)
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = p.b.start(p.i, cmd)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", p.name, err), log.Close())
	}
	done := make(chan struct{})
	p.mu.Lock()
	p.mu.cmd, p.mu.done, p.mu.expected, p.mu.log = cmd, done, false, name
	p.mu.Unlock()
	ready := make(chan error, 1)
	p.b.wg.Go(func() { p.watch(cmd, out, log, ready, done) })
	return ready, nil
}

// watch follows a process to its end.
func (p *proc) watch(cmd *exec.Cmd, out io.Reader, log *os.File, ready chan<- error, done chan<- struct{}) {
	in := bufio.NewReader(out)
	line, err := in.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &struct{}{})
	}
	if err != nil {
		err = fmt.Errorf("%s ended before it was ready: %w; see %s", p.name, err, log.Name())
	}
	ready <- err
	_, _ = io.Copy(io.Discard, in) // to its end
	err = cmd.Wait()
	_ = log.Close() // written by the process, not by us
	p.mu.Lock()
	expected := p.mu.expected
	p.mu.Unlock()
	close(done)
	p.b.ended(p, expected, err, tailOf(log.Name()))
}

// tailOf is the last line of a log, and its first panic if there is one.
func tailOf(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	text := string(b)
	for _, mark := range []string{"\npanic: ", "\nfatal error: ", "WARNING: DATA RACE"} {
		if at := strings.Index(text, mark); at >= 0 {
			return strings.TrimSpace(text[at:min(len(text), at+1500)])
		}
	}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

func (p *proc) log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.log
}

// running reports whether there is a process.
func (p *proc) running() bool {
	p.mu.Lock()
	done := p.mu.done
	p.mu.Unlock()
	if done == nil {
		return false
	}
	select {
	case <-done:
		return false
	default:
		return true
	}
}

// signal sends a signal to the process, if it runs.
func (p *proc) signal(s syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.cmd == nil {
		return nil
	}
	err := p.mu.cmd.Process.Signal(s)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// end sends a signal that is to end the process, and waits for its end. After endMax it is killed, and this is an error.
func (p *proc) end(s syscall.Signal) error {
	p.mu.Lock()
	p.mu.expected = true
	done := p.mu.done
	p.mu.Unlock()
	if done == nil {
		return nil
	}
	if err := p.signal(s); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-time.After(endMax):
	}
	err := fmt.Errorf("%s did not end within %v of %v", p.name, endMax, s)
	_ = p.signal(syscall.SIGKILL) // the error above tells
	<-done
	return err
}

// expect says that the process may end by itself from now on, or no longer.
func (p *proc) expect(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.expected = on
}
