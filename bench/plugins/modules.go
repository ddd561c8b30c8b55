package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins"
)

// language is one whose SDK has the threshold example.
type language struct {
	name  string
	file  string // below the repository
	build string // what makes it
	goals goals
}

// goals of a crossing: microseconds for one event at a time, millions of events a second in batches of 100.
type goals struct{ single, batch, upload float64 }

func languages() []language {
	native := goals{single: 0.3, batch: 5, upload: 1}
	return []language{
		{"C", "sdk/c/build/threshold.wasm", "make sdk-c", native},
		{"Rust", "sdk/rust/build/threshold.wasm", "make sdk-rust", native},
		{"AssemblyScript", "sdk/assemblyscript/build/threshold.wasm", "make sdk-assemblyscript", native},
		{"Go", "sdk/go/build/threshold.wasm", "make sdk-go", goals{single: 1, batch: 1.5, upload: 5}},
	}
}

// notBuilt says of a language that its toolchain was not there.
func (l *language) notBuilt() string { return "not built: " + l.build + " makes " + l.file }

// module returns the example; ok is false if it was not built.
func (l *language) module(o options) (wasm []byte, ok bool, err error) {
	wasm, err = os.ReadFile(filepath.Join(o.root, l.file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	return wasm, err == nil, err
}

// buildBurner builds the guest that takes as much time as it is told to.
func buildBurner(ctx context.Context, o options) ([]byte, error) {
	out := filepath.Join(o.work, "burn.wasm")
	c := exec.CommandContext(ctx, "go", "build", "-buildmode=c-shared", "-ldflags=-s -w", "-o", out, "./burn")
	c.Dir = filepath.Join(o.root, "bench", "plugins")
	c.Env = append(c.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if said, err := c.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, said)
	}
	return os.ReadFile(out)
}

// host is a plugin host with modules.
type host struct {
	*plugins.Host
	modules map[dunlin.ModuleHash][]byte
}

func openHost(cacheDir string, limits plugins.Limits) (*host, error) {
	h := &host{modules: map[dunlin.ModuleHash][]byte{}}
	var err error
	h.Host, err = plugins.Open(plugins.Config{CacheDir: cacheDir, Limits: limits, Module: func(hash dunlin.ModuleHash) ([]byte, error) {
		if m, ok := h.modules[hash]; ok {
			return m, nil
		}
		return nil, dunlin.ErrNotFound
	}})
	return h, err
}

// stage is one that runs the module.
func (h *host) stage(name string, wasm []byte, config string) *dunlin.Stage {
	hash := dunlin.ModuleHash(sha256.Sum256(wasm))
	h.modules[hash] = wasm
	return &dunlin.Stage{Plugin: name, Name: name, Hash: hash, Config: []byte(config)}
}

// rules is a stage of rules.
func rulesStage(text string) *dunlin.Stage {
	return &dunlin.Stage{Plugin: "rules", Hash: sha256.Sum256([]byte(text)), Rules: []byte(text)}
}

const epoch = dunlin.Time(1_767_225_600_000_000)

// reports are one report of one temperature of each device.
func reports(devices int) []*dunlin.Work {
	works := make([]*dunlin.Work, devices)
	for i := range works {
		works[i] = &dunlin.Work{DeviceKey: dunlin.DeviceKey{Tenant: dunlin.DefaultTenant, Device: dunlin.DeviceID(fmt.Sprintf("device-%d", i))}, Seq: 1,
			Inputs: []dunlin.Input{{Kind: dunlin.InputTelemetry, Received: epoch,
				Records: []dunlin.Record{{Metric: "temp", Unit: "Cel", Kind: dunlin.Number, Time: epoch}}}}}
	}
	return works
}

// script is what the temperatures are, over and over: mostly well, each fiftieth reading raises the alert, and the one behind it
// clears it.
func temperature(n int) float64 {
	switch n % 50 {
	case 10:
		return 9
	case 11:
		return 6
	}
	return 4 + float64(n%7)/4
}
