package replica

import (
	"context"
	"log/slog"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// truncation asks the loop whether rows may go: Raft must have forgotten them before they are gone.
type truncation struct {
	shard dunlin.ShardID
	upTo  uint64     // in: up to where it would be fine; out: up to where they may
	reply chan error // size 1: the loop never waits
}

func (t *truncation) allow(c *core) {
	var err error
	t.upTo, err = c.compact(t.shard, t.upTo)
	t.reply <- err
}

func (t *truncation) refuse() { t.reply <- dunlin.ErrUnavailable }

// maintain truncates the logs from time to time, and wakes the loop for proposals that nobody flushed.
func (h *Host) maintain(ctx context.Context) {
	ticker := time.NewTicker(h.cfg.TruncateEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		h.Flush()
		for i, done := range h.truncated {
			upTo, err := h.truncate(ctx, dunlin.ShardID(i), done)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				// Nothing is lost but space; the next round tries again.
				h.cfg.Logger.LogAttrs(ctx, slog.LevelError, "log was not truncated", slog.Int("shard", i), slog.Any("error", err))
				continue
			}
			h.truncated[i] = upTo
		}
	}
}

// truncate drops a shard's rows that neither a crash nor a reader of the past needs: the state machine surely keeps what
// they did, and the archive has them. It returns up to where the log is truncated.
func (h *Host) truncate(ctx context.Context, sh dunlin.ShardID, done uint64) (uint64, error) {
	upTo := h.cfg.StateMachine.Durable(sh)
	if upTo < done+uint64(h.cfg.TruncateEntriesMin) {
		return done, nil
	}
	if h.cfg.Archiver != nil {
		archived, err := h.cfg.Archiver.Archive(sh, upTo)
		if err != nil {
			return done, err
		}
		if upTo = min(upTo, archived); upTo < done+uint64(h.cfg.TruncateEntriesMin) {
			return done, nil
		}
	}
	t := &truncation{shard: sh, upTo: upTo, reply: make(chan error, 1)}
	h.in.Lock()
	if h.in.closed {
		h.in.Unlock()
		return done, dunlin.ErrUnavailable
	}
	h.in.truncations = append(h.in.truncations, t)
	h.in.Unlock()
	h.Flush()
	select {
	case err := <-t.reply:
		if err != nil || t.upTo <= done {
			return done, err
		}
	case <-ctx.Done():
		return done, ctx.Err()
	}
	if err := h.cfg.Log.Truncate(sh, t.upTo); err != nil {
		return done, err
	}
	h.m.truncations.Inc()
	return t.upTo, nil
}
