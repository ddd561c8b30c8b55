package store

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/dunlin-iot/dunlin"
)

// Nobody waits for a hash any more: it ends after some rows. Otherwise it is the hash.
func TestHashContext(t *testing.T) {
	db, done := openShort(t, small(vfs.NewMem(), 1))
	defer done()
	e := dunlin.Entry{Shard: 0, Term: 1}
	for i := range 2 * hashLook {
		e.Puts = append(e.Puts, dunlin.Put{Table: dunlin.TableDomains, Key: fmt.Sprintf("default/%04d", i), Value: []byte("{}")})
	}
	if err := db.State().Apply([]dunlin.Committed{committed(&e, 1)}); err != nil {
		t.Fatal(err)
	}
	want, index, err := db.State().Hash(0)
	if err != nil || index != 1 {
		t.Fatalf("hash as of %d: %v", index, err)
	}
	ctx, stop := context.WithCancelCause(t.Context())
	if sum, index, err := db.State().HashContext(ctx, 0); sum != want || index != 1 || err != nil {
		t.Errorf("got %x as of %d, %v; want %x as of 1", sum[:4], index, err, want[:4])
	}
	gone := errors.New("nobody waits")
	stop(gone)
	if _, _, err := db.State().HashContext(ctx, 0); !errors.Is(err, gone) {
		t.Errorf("with an ended context: %v", err)
	}
}
