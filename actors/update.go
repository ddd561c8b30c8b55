package actors

import (
	"context"
	"errors"
	"fmt"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/device"
)

// Build makes the rows of a change of the registry. It runs in the shard's actor, one after the other, so what it reads
// from the store (all earlier changes of the shard's registry) and checks holds until its rows are committed. st is the
// committed state of the update's device, if it has one; read only. No rows and no error means there is nothing to do.
type Build = func(at dunlin.Time, st *dunlin.DeviceState) ([]dunlin.Put, error)

// update is a change of the registry on its way through a shard's actor.
type update struct {
	device *dunlin.DeviceKey
	build  Build
	done   chan error    // has room for the one answer
	cell   *cell         // of device, held while the change is in flight
	told   *dunlin.Input // what its plugins are told of the change; nil: nothing
}

// updates are a shard's: one in flight, the others in order behind it.
type updates struct {
	waiting []*update
	flying  *update
	due     bool // nextUpdate is to be called
}

// Update changes rows of the registry that live in a shard, and returns when the change is committed. With a device, no
// turn of the device is in flight meanwhile, and its next one begins with what the change made of it. When ctx ends, the
// change may still be made.
func (d *Directory) Update(ctx context.Context, shard dunlin.ShardID, key *dunlin.DeviceKey, build Build) error {
	s := &d.shards[shard]
	switch {
	case d.closing.Load():
		return errClosing
	case !s.open.Load():
		return errNotOwner
	}
	u := &update{device: key, build: build, done: make(chan error, 1)}
	s.box.PostUserMessage(u)
	select {
	case err := <-u.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("change of the registry in shard %d: %w", shard, context.Cause(ctx))
	}
}

// moreUpdates has nextUpdate called by the beat: this may be the committer's goroutine, which has better things to do.
func (s *shard) moreUpdates() {
	if len(s.updates.waiting) > 0 {
		s.updates.due = true
		s.dir.beat.enlistMail(&s.box)
	}
}

// nextUpdate proposes the next change of the registry, if none is in flight and its device is idle. Otherwise settle has
// it called again.
func (s *shard) nextUpdate() {
	us := &s.updates
	us.due = false
	if s.term == 0 && s.coming == 0 {
		s.failUpdates(errNotOwner)
	}
	for us.flying == nil && len(us.waiting) > 0 && s.term != 0 {
		u := us.waiting[0]
		var st *dunlin.DeviceState
		if u.device != nil {
			c, err := s.cell(*u.device)
			if err == nil && c.Phase() != device.Idle {
				return
			}
			if u.cell = c; err != nil {
				us.waiting = us.waiting[1:]
				s.endUpdate(u, err)
				continue
			}
			if c.Registered() {
				st = c.State()
			}
		}
		us.waiting = us.waiting[1:]
		now := s.dir.cfg.Clock()
		puts, err := u.build(now, st)
		if err != nil || len(puts) == 0 {
			s.endUpdate(u, err)
			continue
		}
		if u.cell != nil {
			u.told = lifecycle(puts, u.device, st, now)
			u.cell.Hold()
		}
		us.flying = u
		t := s.dir.newTurn(s)
		t.update = u
		s.propose(t, &dunlin.Entry{Shard: s.id, Term: s.term, At: now, Puts: puts})
	}
}

// settleUpdate ends a change of the registry. Its device is read from the store again, whatever came of it.
func (s *shard) settleUpdate(t *turn) {
	u := t.update
	if c := u.cell; c != nil {
		if c.place >= 0 {
			s.backlog.prepend(c.Release())
		}
		c.Let()
		s.cells.remove(c)
	}
	err := t.err
	if errors.Is(err, dunlin.ErrNotOwner) { // ErrNotOwner is for changes that were not even tried: those may be tried elsewhere
		err = fmt.Errorf("%w: the shard got another owner, and the change may be made all the same: %v", dunlin.ErrUnavailable, err)
	}
	s.endUpdate(u, err)
	if err == nil && u.told != nil {
		s.occur(*u.device, u.told)
	}
}

// endUpdate answers whoever waits for the change.
func (s *shard) endUpdate(u *update, err error) {
	if c := u.cell; c != nil && !c.Registered() && !c.Busy() {
		s.cells.remove(c)
	}
	u.cell = nil
	if s.updates.flying == u {
		s.updates.flying = nil
	}
	u.done <- err
}

func (s *shard) failUpdates(err error) {
	for _, u := range s.updates.waiting {
		s.endUpdate(u, err)
	}
	s.updates.waiting = nil
}
