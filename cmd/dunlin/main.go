// Command dunlin is the node, the operator's tool and the developer's tool in one.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/dunlin-iot/dunlin/cmd/dunlin/internal/cli"
)

func main() {
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // closing the terminal ends a node as Ctrl-C does; under nohup it goes on
		ends = append(ends, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	code := cli.Run(ctx, os.Args[1:], cli.Env{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv})
	stop()
	os.Exit(code)
}
