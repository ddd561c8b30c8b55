package cli

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"net"
	"slices"
	"strings"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/sdk/client"
	"github.com/spf13/cobra"
)

// remote is the node that a command talks to.
type remote struct {
	env    Env
	server string
	token  string
	read   string
	hasty  bool                  // a node that refuses for the moment is not asked again by itself
	lacks  []dunlin.MissingShard // shards that did not answer
}

// flags adds --server and --token, whose defaults come from the environment.
func (r *remote) flags(c *cobra.Command) {
	c.Flags().StringVar(&r.server, "server", "", "the node's HTTP address (DUNLIN_SERVER; default http://127.0.0.1:8080)")
	c.Flags().StringVar(&r.token, "token", "", "bearer token (DUNLIN_TOKEN, DUNLIN_API_TOKEN)")
}

// readFlag adds --read, for questions about what is kept.
func (r *remote) readFlag(c *cobra.Command) {
	c.Flags().StringVar(&r.read, "read", "", "how fresh: leader (the default), or stale=10s for an answer of any replica no older than that")
}

func (r *remote) client() (*client.Client, error) {
	level, err := dunlin.ParseReadLevel(r.read)
	if err != nil {
		return nil, err
	}
	server, token := r.address(), r.token
	for _, key := range []string{"DUNLIN_TOKEN", "DUNLIN_API_TOKEN"} {
		if token == "" {
			token = r.env.Getenv(key)
		}
	}
	retries := 0 // the client's default
	if r.hasty {
		retries = -1
	}
	return client.New(server, client.Options{Token: token, Agent: "dunlin/" + version, Read: level, Retries: retries,
		Missing: func(shards []dunlin.MissingShard) { r.lacks = append(r.lacks, shards...) }})
}

func (r *remote) address() string {
	for _, s := range []string{r.server, r.env.Getenv("DUNLIN_SERVER")} {
		if s != "" {
			return s
		}
	}
	return "http://127.0.0.1:8080"
}

// explain adds what to do next to an error of a call.
func (r *remote) explain(err error) error {
	var problem *client.Error
	var network *net.OpError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &problem) && problem.Status == 401:
		return fmt.Errorf("%w\n  This node wants a credential: pass --token, or set DUNLIN_TOKEN", err)
	case errors.As(err, &network) && network.Op == "dial":
		return fmt.Errorf("no node answers at %s.\n  Start one with `dunlin dev`, or say where it is with --server or DUNLIN_SERVER", r.address())
	}
	return err
}

// collect reads at most limit items (0: all); more says that there are more.
func collect[T any](seq iter.Seq2[T, error], limit int) (items []T, more bool, err error) {
	items = []T{}
	for v, err := range seq {
		if err != nil {
			return nil, false, err
		}
		if limit > 0 && len(items) == limit {
			return items, true, nil
		}
		items = append(items, v)
	}
	return items, false, nil
}

// tellMissing says on stderr which shards a list lacks.
func (r *remote) tellMissing(c *cobra.Command) {
	if len(r.lacks) > 0 {
		slices.SortFunc(r.lacks, func(a, b dunlin.MissingShard) int { return cmp.Compare(a.Shard, b.Shard) })
		r.lacks = slices.CompactFunc(r.lacks, func(a, b dunlin.MissingShard) bool { return a.Shard == b.Shard })
		fmt.Fprintf(c.ErrOrStderr(), "The list lacks the devices of %d shards that did not answer, such as shard %d: %s\n", len(r.lacks), r.lacks[0].Shard, r.lacks[0].Reason)
	}
}

// tellMore says on stderr that a list was cut.
func tellMore(c *cobra.Command, more bool, limit int) {
	if more {
		fmt.Fprintf(c.ErrOrStderr(), "There are more than %d; --limit 0 shows all.\n", limit)
	}
}

func joined(m map[string]string) string {
	pairs := make([]string, 0, len(m))
	for _, k := range sortedKeys(m) {
		pairs = append(pairs, k+"="+m[k])
	}
	return strings.Join(pairs, ",")
}
