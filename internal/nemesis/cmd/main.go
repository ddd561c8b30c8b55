// Command nemesis runs a cluster of a dunlin binary, does faults to it in rounds, and says what was lost.
// Part of the runtime; no compatibility promise before v1.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/dunlin-iot/dunlin/internal/nemesis"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := run(ctx)
	stop()
	os.Exit(code)
}

func run(ctx context.Context) int {
	cfg := nemesis.Config{Out: os.Stderr}
	var list, output string
	var inside, loopback bool
	flag.StringVar(&cfg.Binary, "dunlin", "bin/dunlin", "the binary to be tried")
	flag.StringVar(&cfg.Module, "module", "cmd/dunlin/internal/builtin/modules/cold-chain.wasm", "the example plugin")
	flag.StringVar(&cfg.Dir, "dir", "", "folder for logs and data; default a temporary one, kept if something failed")
	flag.IntVar(&cfg.Nodes, "nodes", 3, "3 or 5")
	flag.IntVar(&cfg.Rounds, "rounds", 20, "how many rounds; the faults take turns")
	flag.Uint64Var(&cfg.Seed, "seed", 1, "what is done to whom, and for how long")
	flag.StringVar(&list, "faults", "", "only these, with commas; default all that can be done here")
	flag.IntVar(&cfg.Devices, "devices", 36, "devices, half of them CoAP, half MQTT")
	flag.StringVar(&cfg.LogLevel, "log-level", "debug", "of the nodes")
	flag.BoolVar(&cfg.KeepOn, "keep-on", false, "go on after a failed round")
	flag.BoolVar(&loopback, "loopback", false, "no namespaces: nodes on loopback addresses, no faults of network and disk")
	flag.StringVar(&output, "o", "text", "text or json")
	flag.BoolVar(&inside, "inside", false, "this is in namespaces already (set by the command itself)")
	flag.Parse()
	if list != "" {
		cfg.Faults = strings.Split(list, ",")
	}
	if !inside && !loopback {
		code, err := nemesis.Inside("-inside")
		if err == nil {
			return code
		}
		fmt.Fprintf(os.Stderr, "no namespaces of our own (%v): nodes stand on loopback addresses, without faults of network and disk\n", err)
	}
	cfg.Isolated = inside
	for _, p := range []*string{&cfg.Binary, &cfg.Module} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			fmt.Fprintln(os.Stderr, "nemesis:", err)
			return 2
		}
		*p = abs
	}
	report, err := nemesis.Run(ctx, cfg)
	if report != nil {
		if output == "json" {
			enc := json.NewEncoder(os.Stdout)
			enc.SetIndent("", "  ")
			err = errors.Join(err, enc.Encode(report))
		} else {
			report.Print(os.Stdout)
		}
	}
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "nemesis:", err)
		return 2
	case len(report.Failures) > 0:
		return 1
	}
	return 0
}
