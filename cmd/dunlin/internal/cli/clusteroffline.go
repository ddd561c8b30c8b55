package cli

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/runtime/config"
	"github.com/dunlin-iot/dunlin/runtime/node"
)

func newClusterKey(env Env) *cobra.Command {
	var data string
	var fresh bool
	c := &cobra.Command{Use: "key", Short: "Print the cluster's key, for a node that is to join", Args: exactArgs(),
		Long: "key prints the secret that all nodes of a cluster share. It is read from a node's data folder, so it is asked for on\n" +
			"the machine of a node. Whoever has it can be a node of the cluster: hand it on as DUNLIN_CLUSTER_KEY, not on a command\n" +
			"line. A node that has been given it once keeps it in its data folder.",
		Example: "  dunlin cluster key --data ./dunlin-data        the key of the cluster that this node belongs to\n" +
			"  dunlin cluster key --new                       a key for a cluster that several nodes are to found",
		RunE: func(*cobra.Command, []string) error {
			if fresh {
				fmt.Fprintln(env.Stdout, node.NewClusterKey())
				return nil
			}
			key, err := node.ClusterKey(config.Config{Data: data})
			if err != nil {
				return err
			}
			fmt.Fprintln(env.Stdout, key)
			return nil
		}}
	c.Flags().StringVar(&data, "data", config.Default().Data, "data folder of a node")
	c.Flags().BoolVar(&fresh, "new", false, "make a new one")
	return c
}

func newClusterRecover(env Env) *cobra.Command {
	var data string
	var unsafe, yes bool
	c := &cobra.Command{Use: "recover", Short: "Go on with one node of a cluster whose majority is lost for good", Args: exactArgs(),
		Long: "recover makes the node of a data folder, which must be stopped, the only one of a new cluster with the data that it\n" +
			"has. Without --unsafe it only tells what that would be. What the others acknowledged without this node is lost, and\n" +
			"shards that it has no replica of begin empty. The other nodes are refused from then on: they join again with empty\n" +
			"data folders. If a majority of the nodes can be brought back, do that instead: nothing is lost then.",
		Example: "  dunlin cluster recover --data ./dunlin-data             tell what it would be\n" +
			"  dunlin cluster recover --data ./dunlin-data --unsafe    do it, after a question",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg := config.Config{Data: data}
			r, err := node.Recover(cfg, false)
			if err != nil {
				return err
			}
			printRecovery(env.Stdout, r)
			if !unsafe {
				fmt.Fprintf(env.Stdout, "\nNothing was changed. To do it: %s --data %s --unsafe\n", c.CommandPath(), data)
				return nil
			}
			if !yes {
				fmt.Fprintf(env.Stdout, "\nThis can't be undone. Type the cluster's id (%s) to go on: ", r.Was)
				line, err := bufio.NewReader(env.Stdin).ReadString('\n')
				if strings.TrimSpace(line) != r.Was || err != nil && err != io.EOF {
					return fmt.Errorf("that was not %s: nothing was changed", r.Was)
				}
			}
			if r, err = node.Recover(cfg, true); err != nil {
				return err
			}
			fmt.Fprintf(env.Stdout, "\nThe node is alone in cluster %s now. Start it as before, without --join, and let each of the others go:\ndunlin cluster leave NAME. New ones join it with empty data folders and this key: dunlin cluster key --data %s\n", r.Now, data)
			return nil
		}}
	fl := c.Flags()
	fl.StringVar(&data, "data", config.Default().Data, "data folder of the node that is left")
	fl.BoolVar(&unsafe, "unsafe", false, "do it; without it nothing is changed")
	fl.BoolVar(&yes, "yes", false, "with --unsafe: don't ask")
	return c
}

// printRecovery accounts for what may be lost, shards of one fate on one line.
func printRecovery(w io.Writer, r *node.Recovery) {
	fmt.Fprintf(w, "Node %s (%s) of cluster %s would go on alone.\n\n", r.Name, r.Node, r.Was)
	by := map[string][]dunlin.ShardID{}
	open := map[string]uint64{}
	for i := range r.Shards {
		s := &r.Shards[i]
		var others []string
		for _, id := range s.Was.Voters {
			if id != r.Node {
				others = append(others, nameOf(r, id))
			}
		}
		slices.Sort(others)
		key := strings.Join(others, ", ")
		by[key] = append(by[key], s.Shard)
		open[key] += s.Last - min(s.Commit, s.Last)
	}
	keys := make([]string, 0, len(by))
	for k := range by {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		switch {
		case k == "":
			fmt.Fprintf(w, "  %s on this node alone: nothing is lost\n", shardsWord(by[k]))
		default:
			fmt.Fprintf(w, "  %s shared with %s: what these acknowledged without this node is lost\n", shardsWord(by[k]), k)
			if open[k] > 0 {
				fmt.Fprintf(w, "    %d entries at the end of their logs are kept, of which it is not known whether they were acknowledged\n", open[k])
			}
		}
	}
	if len(r.Empty) > 0 {
		fmt.Fprintf(w, "  %s not on this node: ALL THEIR DEVICES, HISTORY AND ALERTS ARE LOST\n", shardsWord(r.Empty))
	}
}

func nameOf(r *node.Recovery, id dunlin.NodeID) string {
	if n, ok := r.Members[id]; ok {
		return n
	}
	return id.String()
}

func shardsWord(ids []dunlin.ShardID) string {
	if len(ids) == 1 {
		return fmt.Sprintf("shard %d is", ids[0])
	}
	return fmt.Sprintf("%d shards (%d to %d) are", len(ids), slices.Min(ids), slices.Max(ids))
}
