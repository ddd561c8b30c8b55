// Package cli is the dunlin command: its verbs, their flags and how they print.
// Part of the runtime; no compatibility promise before v1.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// Env is what a command may touch of the process.
type Env struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Getenv func(string) string
}

// errSilent ends a command with exit code 1 after it has said itself what is wrong.
var errSilent = errors.New("")

// Run runs one command line and returns its exit code: 0, 1 for a failure, 2 for a command line that can't be taken.
func Run(ctx context.Context, args []string, env Env) int {
	root := newRoot(env)
	root.SetArgs(args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	err := root.ExecuteContext(ctx)
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		fmt.Fprintf(env.Stderr, "dunlin: %s\nSee '%s --help'.\n", usage.msg, usage.cmd)
		return 2
	case errors.Is(err, errSilent):
		return 1
	}
	fmt.Fprintf(env.Stderr, "dunlin: %s\n", strings.TrimPrefix(err.Error(), "dunlin: "))
	return 1
}

// usageError is a command line that can't be taken.
type usageError struct{ cmd, msg string }

func (e usageError) Error() string { return e.msg }

func newRoot(env Env) *cobra.Command {
	root := &cobra.Command{
		Use:           "dunlin",
		Short:         "An IoT backend in one binary: devices as durable actors, rules as Wasm plugins",
		Long:          "dunlin keeps each device as a durable actor, takes its readings over CoAP, MQTT and HTTP,\nruns your Wasm plugins on them and answers questions over HTTP. One binary is the node and the tool.",
		Example:       "  dunlin dev                         a node on this machine with simulated devices, to look around\n  dunlin server --config dunlin.yaml  a node that keeps its data\n  dunlin get devices                  what a node knows",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{c.CommandPath(), err.Error()}
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(newDev(env), newServer(env), newCluster(env), newGet(env), newTail(env), newApply(env), newDevice(env), newPlugin(env), newExplain(env), newCredential(env),
		newSim(env), newBench(env), newVersion(env))
	return root
}

// exactArgs is cobra.ExactArgs with an error that names what is missing.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return usageError{c.CommandPath(), fmt.Sprintf("want %s, got %d argument(s)", strings.Join(names, " "), len(args))}
		}
		return nil
	}
}

// group is a command that only has subcommands: a word it does not know is an error that lists the ones it does.
func group(c *cobra.Command, subs ...*cobra.Command) *cobra.Command {
	c.AddCommand(subs...)
	names := make([]string, 0, len(subs))
	for _, s := range subs {
		names = append(names, s.Name())
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		return usageError{c.CommandPath(), fmt.Sprintf("%q is none of %s", args[0], strings.Join(names, ", "))}
	}
	return c
}
