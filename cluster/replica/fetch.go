package replica

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// Bounds of one fetch.
const (
	fetchTries     = 6
	fetchPause     = 100 * time.Millisecond // after the first failure; doubled with each
	fetchPauseMax  = 2 * time.Second
	fetchTimeout   = 15 * time.Second // of one chunk
	fetchChunksMax = 1 << 24
)

// Pull receives a snapshot: it asks fetch for the chunks that are not here yet and adds them. progress, if not nil, is told
// after each. What has arrived stays for the next try, unless it is of no use any more.
func Pull(ctx context.Context, snaps Snapshots, fetch Fetcher, meta dunlin.SnapshotMeta, progress func()) error {
	have, err := snaps.Receive(meta)
	if err != nil {
		return fmt.Errorf("receive snapshot of shard %d: %w", meta.Shard, err)
	}
	for i := have; i < fetchChunksMax; i++ {
		data, last, err := pullChunk(ctx, fetch, meta, i)
		switch {
		case err != nil:
			if gone(err) {
				err = errors.Join(err, snaps.Drop(meta.Shard))
			}
			return fmt.Errorf("chunk %d of a snapshot of shard %d: %w", i, meta.Shard, err)
		case last && len(data) == 0 && i > 0: // all of it was here already
			return nil
		}
		if err := snaps.Add(meta, i, data, last); err != nil {
			return fmt.Errorf("chunk %d of a snapshot of shard %d: %w", i, meta.Shard, errors.Join(err, snaps.Drop(meta.Shard)))
		}
		if progress != nil {
			progress()
		}
		if last {
			return nil
		}
	}
	return fmt.Errorf("%w: snapshot of shard %d has no end", dunlin.ErrTooLarge, meta.Shard)
}

// gone reports that asking again for the same snapshot is in vain.
func gone(err error) bool {
	return errors.Is(err, dunlin.ErrNotFound) || errors.Is(err, dunlin.ErrCursorLost) || errors.Is(err, dunlin.ErrInvalid)
}

// pullChunk asks for one chunk, several times if need be.
func pullChunk(ctx context.Context, fetch Fetcher, meta dunlin.SnapshotMeta, i int) (data []byte, last bool, err error) {
	pause := fetchPause
	for range fetchTries {
		try, cancel := context.WithTimeout(ctx, fetchTimeout)
		data, last, err = fetch(try, meta, i)
		cancel()
		if err == nil || gone(err) {
			return data, last, err
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, false, fmt.Errorf("%w: %w", dunlin.ErrUnavailable, context.Cause(ctx))
		case <-t.C:
		}
		pause = min(2*pause, fetchPauseMax)
	}
	return nil, false, err
}

// clerk does what the core orders with files, in goroutines of its own: exports, and at most so many fetches at once.
type clerk struct {
	cfg   *Config
	m     *metrics
	slots chan struct{} // one for each fetch that may be under way
	post  func(func(*core) error)
	spawn func(func())
	stop  map[dunlin.ShardID]context.CancelFunc // of the last fetch; the loop's
	last  map[dunlin.ShardID]chan struct{}      // closed when the last thing that was done with what a shard receives is over; the loop's
}

func (k *clerk) do(ctx context.Context, o order) {
	snaps := k.cfg.Snapshots
	switch o.kind {
	case orderExport:
		k.spawn(func() {
			meta, err := snaps.Export(o.shard)
			k.post(func(c *core) error {
				if err := c.exported(o.shard, meta, err); err != nil {
					k.cfg.Logger.Warn("no snapshot was made", "shard", int(o.shard), "error", err)
				}
				return nil
			})
		})
	case orderFetch:
		fctx, cancel := context.WithCancel(ctx)
		k.stop[o.shard] = cancel
		k.inOrder(o.shard, func() {
			defer cancel()
			err := k.fetch(fctx, o.meta)
			if err != nil && fctx.Err() == nil {
				k.cfg.Logger.Warn("snapshot was not received", "shard", int(o.shard), "from", o.meta.From.String(), "error", err)
			}
			k.post(func(c *core) error {
				c.fetched(&o.meta, err)
				return nil
			})
		})
	case orderInstall:
		k.inOrder(o.shard, func() {
			err := o.install(k.cfg)
			k.m.installs.Inc()
			k.post(func(c *core) error {
				if err != nil {
					return err
				}
				return c.installed(&o.meta)
			})
		})
	case orderCancel:
		if stop := k.stop[o.shard]; stop != nil {
			stop()
		}
	case orderDrop:
		k.inOrder(o.shard, func() {
			if err := snaps.Drop(o.shard); err != nil {
				k.cfg.Logger.Warn("snapshot was not dropped", "shard", int(o.shard), "error", err)
			}
			k.post(func(c *core) error {
				c.dropped(o.shard)
				return nil
			})
		})
	case orderRelease:
		release(snaps, &o.meta)
	}
}

// inOrder does one thing with what a shard receives after the other.
func (k *clerk) inOrder(sh dunlin.ShardID, do func()) {
	before, over := k.last[sh], make(chan struct{})
	k.last[sh] = over
	k.spawn(func() {
		defer close(over)
		if before != nil {
			<-before
		}
		do()
	})
}

func (o *order) install(cfg *Config) error {
	if err := cfg.Snapshots.Install(o.meta, o.hard); err != nil {
		return fmt.Errorf("install snapshot of shard %d: %w", o.shard, err)
	}
	return nil
}

// release ends an export, at a store that wants to know.
func release(snaps Snapshots, meta *dunlin.SnapshotMeta) {
	if r, ok := snaps.(interface{ Release(id string) }); ok && meta.ID != "" {
		r.Release(meta.ID)
	}
}

// fetch waits for its turn first.
func (k *clerk) fetch(ctx context.Context, meta dunlin.SnapshotMeta) error {
	select {
	case k.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-k.slots }()
	return Pull(ctx, k.cfg.Snapshots, k.cfg.Fetch, meta, func() {
		k.post(func(c *core) error {
			c.fetching(&meta)
			return nil
		})
	})
}
