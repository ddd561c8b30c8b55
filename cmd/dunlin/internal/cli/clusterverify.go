package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/sdk/client"
	"github.com/spf13/cobra"
)

// A shard is compared again after compareEvery until all of its replicas were seen at one index, compareTries times at most;
// silentTries times if a replica does not answer.
const (
	compareTries = 12
	silentTries  = 3
	compareEvery = 150 * time.Millisecond
)

// Verdicts about a shard, the worst last.
const (
	same     = "ok"       // all replicas have one hash at one index
	behind   = "behind"   // those that could be compared are the same; others were never seen at the same index
	unknown  = "unknown"  // a replica gave no hash
	diverged = "diverged" // replicas that have applied as much are not the same
)

// verdictOf is what came of comparing a shard's replicas.
type verdictOf struct {
	Shard    dunlin.ShardID `json:"shard"`
	Verdict  string         `json:"verdict"`
	Replicas []replicaHash  `json:"replicas"`
}

// replicaHash is a replica's last answer, of the index at which it was compared if there is one.
type replicaHash struct {
	Node    dunlin.NodeID `json:"node"`
	Name    string        `json:"name"`
	Applied uint64        `json:"applied"`
	Hash    string        `json:"hash,omitempty"`
	Error   string        `json:"error,omitempty"`
	err     error
}

// comparison collects hashes of a shard's replicas. A difference counts when it is seen twice: rows of history that come of
// their retention's age are left out of a hash on one node a moment before they are on another.
type comparison struct {
	seen     map[uint64]map[dunlin.NodeID]string // hashes by index
	differed bool                                // two were seen at one index
}

// add takes the answers of one try and reports whether more tries could tell more.
func (c *comparison) add(answers []replicaHash) (verdict string, final bool) {
	if c.seen == nil {
		c.seen = map[uint64]map[dunlin.NodeID]string{}
	}
	verdict = behind
	differ, complete := false, false
	for _, a := range answers {
		if a.Error != "" {
			verdict = unknown
			continue
		}
		at := c.seen[a.Applied]
		if at == nil {
			at = map[dunlin.NodeID]string{}
			c.seen[a.Applied] = at
		}
		for node, hash := range at {
			differ = differ || node != a.Node && hash != a.Hash
		}
		at[a.Node] = a.Hash
		complete = complete || len(at) == len(answers)
	}
	switch {
	case differ && c.differed:
		return diverged, true
	case differ:
		c.differed = true
		clear(c.seen) // to be seen anew before it is believed
	case complete:
		return same, true
	}
	return verdict, false
}

// silent are members that did not answer, with what came instead. They are not asked about more shards: each question to a node
// that stands still costs seconds.
type silent map[dunlin.NodeID]error

func (g silent) add(answers []replicaHash) {
	for _, r := range answers {
		if errors.Is(r.err, dunlin.ErrUnavailable) {
			g[r.Node] = r.err
		}
	}
}

// compare has all replicas of a shard summed up until that says something.
func compare(ctx context.Context, cl dunlin.ClusterAdmin, s *dunlin.ShardReplicas, gone silent) (verdictOf, error) {
	v := verdictOf{Shard: s.Shard, Verdict: unknown, Replicas: []replicaHash{}}
	if len(s.Replicas) == 0 {
		return v, nil
	}
	var c comparison
	for try := 0; ; try++ {
		v.Replicas = ask(ctx, cl, s, gone)
		var final bool
		if v.Verdict, final = c.add(v.Replicas); v.Verdict == unknown && !c.differed {
			final = try >= silentTries-1 || !slices.ContainsFunc(v.Replicas, func(r replicaHash) bool { return r.Error != "" && gone[r.Node] == nil })
		}
		if final || try == compareTries-1 {
			gone.add(v.Replicas)
			return v, nil
		}
		timer := time.NewTimer(compareEvery)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return v, context.Cause(ctx)
		}
	}
}

// ask asks all at once: the closer in time, the more likely at one index.
func ask(ctx context.Context, cl dunlin.ClusterAdmin, s *dunlin.ShardReplicas, gone silent) []replicaHash {
	out := make([]replicaHash, len(s.Replicas))
	var wg sync.WaitGroup
	for i, r := range s.Replicas {
		wg.Go(func() {
			out[i] = replicaHash{Node: r.Node, Name: r.Name}
			err := gone[r.Node]
			var h *dunlin.ShardHash
			if err == nil {
				h, err = cl.ShardHash(ctx, s.Shard, r.Node.String())
			}
			if err != nil {
				out[i].err, out[i].Error = err, briefly(err)
				return
			}
			out[i].Applied, out[i].Hash = h.Applied, h.Hash
		})
	}
	wg.Wait()
	return out
}

// briefly is an error in a table's cell.
func briefly(err error) string {
	text := err.Error()
	var problem *client.Error
	if errors.As(err, &problem) && problem.Detail != "" {
		text = problem.Detail
	}
	text, _, _ = strings.Cut(text, "\n")
	return text
}

// verify compares the replicas of shards, prints what came of it, and fails if any are not the same.
func verify(c *cobra.Command, out *output, cl dunlin.ClusterAdmin, shards []dunlin.ShardReplicas) error {
	verdicts, counts, gone := make([]verdictOf, len(shards)), map[string]int{}, silent{}
	for i := range shards {
		var err error
		if verdicts[i], err = compare(c.Context(), cl, &shards[i], gone); err != nil {
			return err
		}
		counts[verdicts[i].Verdict]++
	}
	err := out.print(c, verdicts, func(w io.Writer) {
		row(w, "SHARD", "OWNER", "VERDICT", "REPLICAS")
		for i := range verdicts {
			words := verdicts[i].Verdict
			if words == diverged {
				words = strings.ToUpper(words)
			}
			row(w, strconv.Itoa(int(shards[i].Shard)), ownerOf(&shards[i]), words, verdicts[i].describe())
		}
	})
	if err != nil {
		return err
	}
	told := fmt.Sprintf("%s compared: %d the same on all replicas", count(len(shards), "shard"), counts[same])
	for _, v := range []struct{ verdict, words string }{{behind, "with replicas never seen at one index"}, {unknown, "with replicas that gave no hash"}, {diverged, "DIVERGED"}} {
		if n := counts[v.verdict]; n > 0 {
			told += fmt.Sprintf(", %d %s", n, v.words)
		}
	}
	fmt.Fprintln(c.ErrOrStderr(), told)
	if counts[diverged] > 0 {
		return errSilent
	}
	return nil
}

// describe lists the replicas, with what sets one apart: its hash where they differ, its index where that differs.
func (v *verdictOf) describe() string {
	var texts []string
	newest := slices.MaxFunc(append(v.Replicas, replicaHash{}), func(a, b replicaHash) int { return cmp.Compare(a.Applied, b.Applied) }).Applied
	for _, r := range v.Replicas {
		text := cmp.Or(r.Name, r.Node.String())
		switch {
		case errors.Is(r.err, dunlin.ErrUnavailable):
			text += "(no answer)" // -o json has all of the error
		case r.Error != "":
			text += "(" + cut(r.Error, 60) + ")"
		case v.Verdict == diverged:
			text += fmt.Sprintf("(%s at %d)", r.Hash[:min(len(r.Hash), 8)], r.Applied)
		case v.Verdict != same && r.Applied < newest:
			text += fmt.Sprintf("(%d behind)", newest-r.Applied)
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, " ")
}
