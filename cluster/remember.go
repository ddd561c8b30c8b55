package cluster

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/gossip"
)

// recall reads where others gossiped when this node last ran; the file is a list of seeds, as `--join file:…` takes it. It is a
// help and no promise: a damaged one is told and left alone.
func (n *Network) recall() {
	if n.cfg.Remember == "" {
		return
	}
	known, err := gossip.ReadSeeds(n.cfg.Remember)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.cfg.Log.Warn("the addresses of other members can't be read", slog.Any("error", err))
		return
	}
	n.known = known
}

// callable are the seeds and whom this node met when it last ran: those of --join may be gone since.
func (n *Network) callable() []string {
	out := slices.Clone(n.cfg.Seeds)
	for _, addr := range n.known {
		if !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	return out
}

// remember keeps where the others gossip. The members table says it too, but a node that was killed may have lost what its
// replica of the table learnt last, and without a member to ask it does not learn it again. With nobody there, what was known
// stays.
func (n *Network) remember() {
	if n.cfg.Remember == "" {
		return
	}
	var others []gossip.Seen
	for _, s := range *n.seen.Load() {
		if s.Alive && s.ID != n.cfg.Node && s.Addr != "" && s.Cluster != "" {
			others = append(others, s)
		}
	}
	if len(others) == 0 {
		return
	}
	slices.SortFunc(others, func(a, b gossip.Seen) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	var text bytes.Buffer
	text.WriteString("# Where this node met the other members of its cluster; it calls them when it starts.\n")
	for _, s := range others {
		fmt.Fprintf(&text, "%s # %s\n", s.Addr, s.Name)
	}
	if bytes.Equal(text.Bytes(), n.remembered) {
		return
	}
	next := n.cfg.Remember + ".new"
	err := os.WriteFile(next, text.Bytes(), 0o600)
	if err == nil {
		err = os.Rename(next, n.cfg.Remember)
	}
	if err != nil {
		n.cfg.Log.Warn("the addresses of other members can't be kept", slog.Any("error", err))
	}
	n.remembered = text.Bytes()
}

// Forget removes what a node remembered of its cluster, for one that no longer belongs to it.
func Forget(remember string) error {
	if err := os.Remove(remember); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: forget the other members: %w", dunlin.ErrUnavailable, err)
	}
	return nil
}
