package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/sdk/client"
	"github.com/spf13/cobra"
)

func newCluster(env Env) *cobra.Command {
	return group(&cobra.Command{Use: "cluster", Short: "See how a cluster is, and move its shards",
		Long: "cluster shows and changes where a cluster keeps its shards. Any member answers. Before you stop a member for long,\n" +
			"drain it; to take it out for good, let it leave; a new one joins with `dunlin server --join`.",
		Example: "  dunlin cluster status               is it well, who leads, what moves\n" +
			"  dunlin cluster drain n2             before n2 is restarted or looked at\n" +
			"  dunlin cluster undrain n2           n2 takes shards again\n" +
			"  dunlin cluster leave n2             n2 gives everything away and is forgotten"},
		newClusterStatus(env), newClusterMembers(env), newClusterShards(env), newClusterDrain(env), newClusterUndrain(env), newClusterLeave(env),
		newClusterMove(env), newClusterKey(env), newClusterRecover(env))
}

// admin is what the commands ask: a *client.Client.
func (r *remote) admin() (dunlin.ClusterAdmin, error) { return r.client() }

// explainCluster adds what to do next to an error of a call about a cluster; member names the one that was meant.
func (r *remote) explainCluster(ctx context.Context, cl dunlin.ClusterAdmin, err error, members ...string) error {
	var problem *client.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &problem) && problem.Status == 403:
		return fmt.Errorf("%w\n  Pass an operator's token with --token, or set DUNLIN_TOKEN", err)
	case errors.Is(err, dunlin.ErrUnavailable):
		return fmt.Errorf("%w\n  No member that could tell answers; `dunlin cluster status` on another one (--server) may say why", err)
	case !errors.Is(err, dunlin.ErrNotFound):
		return r.explain(err)
	}
	found, listErr := cl.Members(ctx)
	if errors.Is(listErr, dunlin.ErrNotFound) {
		return fmt.Errorf("the node at %s does not take part in a cluster.\n  Name one that does with --server", r.address())
	}
	var names []string
	known := map[string]bool{}
	for i := range found {
		names = append(names, found[i].Name)
		known[found[i].Name], known[found[i].ID.String()] = true, true
	}
	for _, name := range members {
		if name != "" && listErr == nil && !known[name] {
			return fmt.Errorf("no member is called %q; there are %s", name, strings.Join(names, ", "))
		}
	}
	return err
}

// clusterReport is what status -o json prints.
type clusterReport struct {
	*dunlin.ClusterStatus
	MemberList []dunlin.Member `json:"member_list"`
}

func newClusterStatus(env Env) *cobra.Command {
	r, out, check := remote{env: env}, output{}, false
	c := &cobra.Command{Use: "status", Short: "Whether the cluster is well, who leads, and what moves", Args: exactArgs(),
		Long: "status says in its first line whether every shard has an owner and all its replicas. Below are the members, the\n" +
			"replicas that move, and what is wrong with what to do, the worst first.",
		Example: "  dunlin cluster status\n  dunlin cluster status --check && echo all is well\n  dunlin cluster status -o json | jq .healthy\n  watch -n 2 dunlin cluster status",
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := r.admin()
			if err != nil {
				return err
			}
			st, err := cl.ClusterStatus(c.Context())
			if err != nil {
				return r.explainCluster(c.Context(), cl, err)
			}
			members, err := cl.Members(c.Context())
			if err != nil {
				return r.explainCluster(c.Context(), cl, err)
			}
			if out.format == "table" {
				printStatus(c.OutOrStdout(), st, members, colours(env, c.OutOrStdout()))
			} else if err := out.print(c, clusterReport{st, members}, nil); err != nil {
				return err
			}
			if check && !st.Healthy {
				return errSilent
			}
			return nil
		}}
	r.flags(c)
	out.flag(c)
	c.Flags().BoolVar(&check, "check", false, "exit with 1 unless every shard has an owner and all its replicas")
	return c
}

// verdict is the cluster in a few words, and the colour that they deserve.
func verdict(st *dunlin.ClusterStatus) (words, colour string) {
	const green, yellow, red = "32", "33", "31"
	switch {
	case st.Owned < st.Shards:
		return fmt.Sprintf("DOWN in part: nobody owns %d of %s, so nothing gets in there", st.Shards-st.Owned, count(st.Shards, "shard")), red
	case st.Full < st.Shards:
		return fmt.Sprintf("DEGRADED: everything works; %d of %s without all replicas", st.Shards-st.Full, count(st.Shards, "shard")), yellow
	case len(st.Problems) == 1:
		return "HEALTHY, with a warning", green
	case len(st.Problems) > 1:
		return fmt.Sprintf("HEALTHY, with %d warnings", len(st.Problems)), green
	}
	return "HEALTHY", green
}

func printStatus(w io.Writer, st *dunlin.ClusterStatus, members []dunlin.Member, colour bool) {
	words, code := verdict(st)
	if first, rest, _ := strings.Cut(words, " "); colour {
		words = strings.TrimRight("\x1b[1;"+code+"m"+first+"\x1b[0m "+rest, " ")
	}
	fmt.Fprintln(w, words)
	fmt.Fprintf(w, "cluster %s: %d of %d members alive, %d of %d shards owned, %d with all their replicas (replication factor %d)\n\n",
		printable(cmp.Or(st.Cluster, "-")), st.Alive, st.Members, st.Owned, st.Shards, st.Full, st.Replication)
	o := output{format: "table"}
	c := &cobra.Command{}
	c.SetOut(w)
	_ = o.print(c, nil, func(w io.Writer) {
		row(w, "MEMBER", "STATE", "OWNS", "REPLICAS", "DISK", "FREE", "NOTE")
		for i := range members {
			m := &members[i]
			var notes []string
			if m.ID == st.Controller {
				notes = append(notes, "controller")
			}
			if m.ID == st.Node {
				notes = append(notes, "answers")
			}
			row(w, m.Name, stateOf(m), strconv.Itoa(m.Leads), strconv.Itoa(m.Replicas), bytesOf(m.DiskUsed), bytesOf(m.DiskFree), strings.Join(notes, ", "))
		}
	})
	if st.Controller == 0 {
		fmt.Fprintln(w, "\nNobody is known to be the controller: shards stay where they are.")
	}
	if len(st.Moves) > 0 {
		fmt.Fprintln(w, "\nMoving:")
		for _, m := range st.Moves {
			fmt.Fprintf(w, "  %s\n", printable(m))
		}
	}
	if len(st.Problems) > 0 {
		fmt.Fprintln(w, "\nTo do:")
		for _, p := range st.Problems {
			fmt.Fprintf(w, "  - %s\n", printable(p))
		}
	}
}

// stateOf is a member's state as people see it: that it is down matters more than what is wanted of it.
func stateOf(m *dunlin.Member) string {
	switch {
	case !m.Alive && m.State == dunlin.MemberActive:
		return strings.TrimSuffix("down "+spanOf(m.DownFor), " ")
	case !m.Alive:
		return strings.TrimSuffix(string(m.State)+", down "+spanOf(m.DownFor), " ")
	}
	return string(m.State)
}

func spanOf(d dunlin.Duration) string {
	if d <= 0 {
		return ""
	}
	s := time.Duration(d).Round(time.Second).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// bytesOf writes a size in the unit that people read it in; "" for none.
func bytesOf(n int64) string {
	if n <= 0 {
		return ""
	}
	v, units := float64(n), []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	i := 0
	for ; v >= 1024 && i < len(units)-1; i++ {
		v /= 1024
	}
	if i == 0 || v >= 100 {
		return fmt.Sprintf("%.0f%s", v, units[i])
	}
	return fmt.Sprintf("%.1f%s", v, units[i])
}

func newClusterMembers(env Env) *cobra.Command {
	r, out := remote{env: env}, output{}
	c := &cobra.Command{Use: "members", Short: "List the members", Args: exactArgs(),
		Example: "  dunlin cluster members\n  dunlin cluster members -o json | jq '.[] | select(.alive | not) | .name'",
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := r.admin()
			if err != nil {
				return err
			}
			members, err := cl.Members(c.Context())
			if err != nil {
				return r.explainCluster(c.Context(), cl, err)
			}
			return out.print(c, members, func(w io.Writer) {
				row(w, "MEMBER", "ID", "ZONE", "STATE", "OWNS", "REPLICAS", "DISK", "FREE", "PEER", "HTTP", "VERSION")
				for i := range members {
					m := &members[i]
					row(w, m.Name, m.ID.String(), m.Zone, stateOf(m), strconv.Itoa(m.Leads), strconv.Itoa(m.Replicas), bytesOf(m.DiskUsed), bytesOf(m.DiskFree),
						m.Peer, m.HTTP, m.Version)
				}
			})
		}}
	r.flags(c)
	out.flag(c)
	return c
}

func newClusterShards(env Env) *cobra.Command {
	r, out, member, unsettled, compared := remote{env: env}, output{}, "", false, false
	c := &cobra.Command{Use: "shards", Short: "List the shards with their replicas, or compare these", Args: exactArgs(),
		Long: "shards lists where each shard is. In the column of replicas the owner stands first; then what is not an\n" +
			"up-to-date voter says so: n3(learner, 120 behind), n2(silent) if the owner has not heard of it lately.\n\n" +
			"With --verify every member sums up its replicas, and those that have applied as much are compared: ok, behind (never\n" +
			"seen at one index, as under load), unknown (no answer) or DIVERGED, which must never be, and makes it exit with 1.\n" +
			"All that the shards hold is read once on each of their nodes.",
		Example: "  dunlin cluster shards\n  dunlin cluster shards --member n2\n  dunlin cluster shards --unsettled        only those that move or lack something\n" +
			"  dunlin cluster shards --verify           are all copies the same?",
		RunE: func(c *cobra.Command, _ []string) error {
			r.hasty = compared // compare asks again
			cl, err := r.admin()
			if err != nil {
				return err
			}
			all, err := cl.ShardReplicas(c.Context())
			if err != nil {
				return r.explainCluster(c.Context(), cl, err)
			}
			shards := []dunlin.ShardReplicas{}
			for i := range all {
				if (member == "" || holds(&all[i], member)) && (!unsettled || unsettledOf(&all[i])) {
					shards = append(shards, all[i])
				}
			}
			if compared {
				return verify(c, &out, cl, shards)
			}
			return out.print(c, shards, func(w io.Writer) {
				row(w, "SHARD", "OWNER", "REPLICAS", "COMMIT", "TERM", "SIZE", "DOING")
				for i := range shards {
					s := &shards[i]
					row(w, strconv.Itoa(int(s.Shard)), ownerOf(s), replicasOf(s), strconv.FormatUint(s.Commit, 10), strconv.FormatUint(s.Term, 10),
						bytesOf(s.Bytes), strings.Trim(s.Missing+", "+s.Moving, ", "))
				}
			})
		}}
	r.flags(c)
	out.flag(c)
	c.Flags().StringVar(&member, "member", "", "only shards with a replica on this member (name or id)")
	c.Flags().BoolVar(&unsettled, "unsettled", false, "only shards that move, lack something, or whose replicas are not all up to date")
	c.Flags().BoolVar(&compared, "verify", false, "compare the replicas; exit with 1 if any that have applied as much are not the same")
	return c
}

func holds(s *dunlin.ShardReplicas, member string) bool {
	for _, rep := range s.Replicas {
		if rep.Name == member || rep.Node.String() == member {
			return true
		}
	}
	return false
}

func unsettledOf(s *dunlin.ShardReplicas) bool {
	for _, rep := range s.Replicas {
		if !rep.Active || rep.Role == dunlin.RoleOutgoing || rep.Role == dunlin.RoleLearner && s.Shard != dunlin.MetaShard {
			return true
		}
	}
	return s.Owner == 0 || s.Moving != "" || s.Missing != ""
}

func ownerOf(s *dunlin.ShardReplicas) string {
	for _, rep := range s.Replicas {
		if rep.Node == s.Owner && s.Owner != 0 {
			return cmp.Or(rep.Name, rep.Node.String())
		}
	}
	if s.Owner == 0 {
		return ""
	}
	return s.Owner.String()
}

func replicasOf(s *dunlin.ShardReplicas) string {
	var first, rest []string
	for _, rep := range s.Replicas {
		name := cmp.Or(rep.Name, rep.Node.String())
		if rep.Node == s.Owner {
			first = append(first, name)
			continue
		}
		var notes []string
		if rep.Role != dunlin.RoleVoter {
			notes = append(notes, string(rep.Role))
		}
		switch {
		case s.Owner == 0: // nobody is there to know
		case !rep.Active:
			notes = append(notes, "silent")
		case rep.Behind > 0:
			notes = append(notes, strconv.FormatUint(rep.Behind, 10)+" behind")
		}
		if len(notes) > 0 {
			name += "(" + strings.Join(notes, ", ") + ")"
		}
		rest = append(rest, name)
	}
	return strings.Join(append(first, rest...), " ")
}

// colours tells whether w is a terminal that wants them.
func colours(env Env, w io.Writer) bool {
	return terminal(w) && env.Getenv("NO_COLOR") == "" && env.Getenv("TERM") != "dumb"
}
