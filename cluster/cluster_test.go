package cluster_test

import (
	"context"
	"encoding/hex"
	"errors"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster"
	"github.com/dunlin-iot/dunlin/entry"
	"github.com/dunlin-iot/dunlin/store"
	"go.uber.org/goleak"
)

// TestLoneNode: a node alone over the real store is ready by itself, keeps what it acknowledges, and comes back in the next
// term.
func TestLoneNode(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	fs := vfs.NewMem()
	for life := range uint64(2) {
		db, err := store.Open(store.Config{Dir: "data", FS: fs, Identity: store.Identity{Shards: 8}})
		if err != nil {
			t.Fatal(err)
		}
		owned := make(chan uint64, 8)
		c, err := cluster.Open(cluster.Config{Shards: 8, Log: db.Log(), State: db.State(), Store: db.State(), Bootstrap: true, Encode: func(e *dunlin.Entry, v uint32) []byte { return entry.AppendAs(nil, e, v) },
			OnOwner: func(_ dunlin.ShardID, term uint64, owner bool) {
				if owner {
					owned <- term
				}
			}})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Ready(); !errors.Is(err, dunlin.ErrUnavailable) {
			t.Errorf("ready before Run: %v", err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- c.Run(ctx) }()
		for range 8 {
			if term := <-owned; term != 2+life {
				t.Errorf("life %d: owner in term %d, want %d", life, term, 2+life)
			}
		}
		for tick := time.NewTicker(time.Millisecond); c.Ready() != nil; <-tick.C {
			if t.Context().Err() != nil {
				t.Fatal(c.Ready())
			}
		}
		term, _ := c.Owned(3)
		if n := len(rows(t, db)); n != int(life) {
			t.Errorf("life %d begins with %d rows", life, n)
		}
		answer := make(chan error, 1)
		e := dunlin.Entry{Shard: 3, Term: term, Puts: []dunlin.Put{{Table: dunlin.TableDomains, Key: "default/" + string(rune('a'+life)), Value: []byte("{}")}}}
		c.Propose(3, term, entry.Append(nil, &e), func(_ uint64, err error) { answer <- err })
		c.Flush()
		if err := <-answer; err != nil {
			t.Fatal(err)
		}
		if n := len(rows(t, db)); n != int(life)+1 {
			t.Errorf("%d rows after the answer, want %d: acknowledged is applied", n, life+1)
		}
		lookInside(t, c, db, term)
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
}

// lookInside checks what a node says of its replicas, and their hashes, which are as the store makes them.
func lookInside(t *testing.T, c *cluster.Cluster, db *store.DB, term uint64) {
	t.Helper()
	own, err := c.OwnReplicas(t.Context())
	if err != nil || own.Node != 1 || len(own.Replicas) != 8 {
		t.Fatalf("own replicas: %+v, %v", own, err)
	}
	applied := db.State().Applied(3)
	want := dunlin.OwnReplica{Shard: 3, Term: term, Owns: term, Leader: 1, LeaderTerm: term, Applied: applied, Commit: applied}
	if own.Replicas[3] != want {
		t.Errorf("replica of shard 3: %+v, want %+v", own.Replicas[3], want)
	}
	sum, index, err := db.State().Hash(3)
	if err != nil {
		t.Fatal(err)
	}
	h, err := c.ShardHash(t.Context(), 3, "")
	if err != nil || *h != (dunlin.ShardHash{Shard: 3, Node: 1, Applied: index, Hash: hex.EncodeToString(sum[:])}) {
		t.Errorf("hash of shard 3: %+v, %v; want %x as of %d", h, err, sum, index)
	}
	if _, err := c.ShardHash(t.Context(), 8, ""); !errors.Is(err, dunlin.ErrNotFound) {
		t.Errorf("hash of a shard that there is none of: %v", err)
	}
	if _, err := c.ShardHash(t.Context(), 3, "n7"); !errors.Is(err, dunlin.ErrNotFound) {
		t.Errorf("hash at a member that there is none of: %v", err)
	}
	gone, stop := context.WithCancel(t.Context())
	stop()
	if _, err := c.ShardHash(gone, 3, ""); err != nil && !errors.Is(err, dunlin.ErrUnavailable) {
		t.Errorf("hash that nobody waits for: %v", err)
	}
}

func rows(t *testing.T, db *store.DB) []dunlin.Put {
	t.Helper()
	rows, err := db.State().Rows(3, dunlin.TableDomains, "", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}
