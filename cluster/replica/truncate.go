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
		for i := range h.cells {
			if h.cells[i].flags.Load() == 0 {
				continue
			}
			err := h.truncate(ctx, dunlin.ShardID(i))
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				// Nothing is lost but space; the next round tries again.
				h.cfg.Logger.LogAttrs(ctx, slog.LevelError, "log was not truncated", slog.Int("shard", i), slog.Any("error", err))
			}
		}
	}
}

// worthTruncating reports whether the rows up to an index are worth a truncation. Large ones are even if they are few: a log of
// them is written twice if it stays, and a new replica would be fed from it, which costs several times what a snapshot does.
func (h *Host) worthTruncating(log *cell, upTo uint64) bool {
	first, last := log.first.Load(), log.last.Load()
	if upTo < first || last < first {
		return false
	}
	rows := min(upTo, last) - first + 1
	bytes := float64(log.logBytes.Load()) * float64(rows) / float64(last-first+1)
	return rows >= uint64(h.cfg.TruncateEntriesMin) || bytes >= float64(h.cfg.TruncateBytesMin)
}

// truncate drops a shard's rows that neither a crash nor a reader of the past needs: the state machine surely keeps what
// they did, and the archive has them.
func (h *Host) truncate(ctx context.Context, sh dunlin.ShardID) error {
	log := &h.cells[sh]
	done := log.first.Load() - 1 // these are dropped already
	upTo := h.cfg.StateMachine.Durable(sh)
	if !h.worthTruncating(log, upTo) {
		return nil
	}
	if h.cfg.Archiver != nil {
		archived, err := h.cfg.Archiver.Archive(sh, upTo)
		if err != nil {
			return err
		}
		if upTo = min(upTo, archived); !h.worthTruncating(log, upTo) {
			return nil
		}
	}
	// The replica must not be destroyed between the core's leave and the truncation.
	select {
	case h.replicas <- struct{}{}:
		defer func() { <-h.replicas }()
	case <-ctx.Done():
		return ctx.Err()
	}
	t := &truncation{shard: sh, upTo: upTo, reply: make(chan error, 1)}
	h.in.Lock()
	if h.in.closed {
		h.in.Unlock()
		return dunlin.ErrUnavailable
	}
	h.in.truncations = append(h.in.truncations, t)
	h.in.Unlock()
	h.Flush()
	select {
	case err := <-t.reply:
		if err != nil || t.upTo <= done {
			return err
		}
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := h.cfg.Log.Truncate(sh, t.upTo); err != nil {
		return err
	}
	h.m.truncations.Inc()
	return nil
}
