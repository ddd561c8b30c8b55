package nemesis

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/sdk/client"
)

// askEvery is how often each node is asked what it owns.
const askEvery = 100 * time.Millisecond

// witness fills the ledger: it asks every node all the time what it owns and whom it takes for the owner of the rest, reads in
// their logs which shards' actors were activated, and compares the states of replicas.
type witness struct {
	b      *Bench
	ledger *ledger
	logs   map[string]int64 // how far they have been read; of the rounds' goroutine
	// patience bounds how long replicas are compared until all of a shard were seen after one entry.
	patience time.Duration
	mu       struct {
		sync.Mutex
		ids map[string]dunlin.NodeID // of the node that writes a log, by file; and by place for those that stay
	}
}

func newWitness(b *Bench) *witness {
	w := &witness{b: b, ledger: newLedger(), logs: map[string]int64{}, patience: 10 * time.Second}
	w.mu.ids = map[string]dunlin.NodeID{}
	return w
}

// run asks until ctx ends.
func (w *witness) run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, p := range w.b.procs {
		wg.Go(func() {
			for pause(ctx, askEvery) == nil {
				if p.running() {
					w.ask(ctx, p)
				}
			}
		})
	}
	wg.Wait()
}

// ask notes what a node says. That it says nothing is no wonder while faults are done to it.
func (w *witness) ask(ctx context.Context, p *proc) {
	log := p.log()
	r, err := w.b.client(p).OwnReplicas(ctx)
	if err != nil {
		return
	}
	w.ledger.reported(r)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.ids[log] = r.Node
	if p.i <= w.b.cfg.Nodes { // keeps its data, and so its id, from life to life
		w.mu.ids[p.name] = r.Node
	}
}

// id returns the id of the node that wrote a log; 0 if it never told.
func (w *witness) id(log string) dunlin.NodeID {
	w.mu.Lock()
	defer w.mu.Unlock()
	if id := w.mu.ids[log]; id != 0 {
		return id
	}
	name, _, _ := strings.Cut(filepath.Base(log), "-")
	return w.mu.ids[name]
}

// readLogs takes every activation that the nodes have logged since it was last called.
func (w *witness) readLogs() error {
	files, err := filepath.Glob(filepath.Join(w.b.cfg.Dir, "logs", "*.log"))
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range files {
		errs = append(errs, w.readLog(name))
	}
	return errors.Join(errs...)
}

func (w *witness) readLog(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(w.logs[name], io.SeekStart); err != nil {
		return err
	}
	in := bufio.NewReaderSize(f, 64<<10)
	for {
		line, err := in.ReadString('\n')
		if err != nil { // what is not a whole line yet is read the next time
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		w.logs[name] += int64(len(line))
		if sh, term, ok := activation(line); ok {
			w.ledger.activated(sh, term, w.id(name), filepath.Base(name))
		}
	}
}

// activation reads the line that a node logs when it starts to work for a shard.
func activation(line string) (sh dunlin.ShardID, term uint64, ok bool) {
	_, rest, ok := strings.Cut(line, ` msg="shard owned" `)
	if !ok {
		return 0, 0, false
	}
	n, err := fmt.Sscanf(rest, "shard=%d term=%d", &sh, &term)
	return sh, term, err == nil && n == 2
}

// replication is how many replicas a shard has, the meta shard's learners not counted.
const replication = 3

// compare has nodes sum up their replicas until all of each shard were seen after one entry. Shards for which that did not
// happen in time are counted.
func (w *witness) compare(ctx context.Context, procs []*proc) error {
	var shards int
	if err := w.b.anybody(ctx, checkMax, func(c *client.Client) error {
		st, err := c.ClusterStatus(ctx)
		if err == nil {
			shards = st.Shards
		}
		return err
	}); err != nil {
		return err
	}
	var todo []dunlin.ShardID
	for sh := range shards {
		todo = append(todo, dunlin.ShardID(sh))
	}
	seen := map[place]map[dunlin.NodeID]bool{}
	for deadline := w.b.now() + w.patience; ; {
		var left []dunlin.ShardID
		for _, sh := range todo {
			if !w.compareShard(ctx, procs, sh, seen) {
				left = append(left, sh)
			}
		}
		if todo = left; len(todo) == 0 || w.b.now() > deadline {
			break
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	w.ledger.compared(shards-len(todo), len(todo))
	return nil
}

// compareShard asks all nodes at once, and reports whether all that have a replica were seen after one entry by now.
func (w *witness) compareShard(ctx context.Context, procs []*proc, sh dunlin.ShardID, seen map[place]map[dunlin.NodeID]bool) bool {
	hashes, errs := make([]*dunlin.ShardHash, len(procs)), make([]error, len(procs))
	var wg sync.WaitGroup
	for i, p := range procs {
		wg.Go(func() { hashes[i], errs[i] = w.b.client(p).ShardHash(ctx, sh, "") })
	}
	wg.Wait()
	replicas, most := 0, 0
	for i, h := range hashes {
		switch {
		case errors.Is(errs[i], dunlin.ErrNotFound):
			continue // has none
		case errs[i] != nil:
			return false
		}
		w.ledger.has(h)
		replicas++
		at := place{sh, h.Applied}
		if seen[at] == nil {
			seen[at] = map[dunlin.NodeID]bool{}
		}
		seen[at][h.Node] = true
		most = max(most, len(seen[at]))
	}
	return replicas >= replication && most >= replicas
}
