package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/entry"
)

// Bounds of a change that the owner of a letter's shard makes.
const (
	ownerTries = 64
	ownerPause = 20 * time.Millisecond
	ownerWait  = time.Second
)

// letter finds a dead letter by its id.
func (s *Service) letter(ctx context.Context, t dunlin.Tenant, id string) (*dunlin.DeadLetter, error) {
	key, _, _, err := dunlin.ParseDeadLetterKey(string(t) + "/" + id)
	if err != nil {
		return nil, err
	}
	page, err := s.deps.Inspector.DeadLetters(ctx, dunlin.DeadLettersQuery{Tenant: t, Device: key.Device, Limit: 1000})
	if err != nil {
		return nil, err
	}
	for i := range page.Letters {
		if l := &page.Letters[i]; l.ID() == id {
			return l, nil
		}
	}
	if len(page.Missing) > 0 {
		return nil, fmt.Errorf("%w: shard %d does not answer: %s", dunlin.ErrUnavailable, page.Missing[0].Shard, page.Missing[0].Reason)
	}
	return nil, fmt.Errorf("%w: there is no dead letter %s", dunlin.ErrNotFound, id)
}

// ReplayLetter implements dunlin.Replayer. The readings of the input are in the device's history already, and are the same ones
// when they come again. What was no uplink can't be sent again.
func (s *Service) ReplayLetter(ctx context.Context, t dunlin.Tenant, id string) (again string, err error) {
	if t == "" {
		t = dunlin.DefaultTenant
	}
	l, err := s.letter(ctx, t, id)
	if err != nil {
		return "", err
	}
	if l.Input.Kind != dunlin.InputTelemetry && l.Input.Kind != dunlin.InputRaw {
		return "", fmt.Errorf("%w: dead letter %s is no message of the device, but %s: it can't come again; drop it", dunlin.ErrConflict, id, kindOf(&l.Input))
	}
	rec, err := s.send(ctx, l)
	if err != nil {
		return "", fmt.Errorf("replay dead letter %s: %w", id, err)
	}
	// What the turn came to is in the dead letters, too.
	fresh := *l
	fresh.Seq = rec.Seq
	failed, err := s.letter(ctx, t, fresh.ID())
	switch {
	case err == nil:
		if e := s.drop(ctx, failed); e != nil { // the old one stands for both
			s.cfg.Log.Warn("a dead letter that failed again is there twice", "letter", fresh.ID(), "error", e)
		}
		return failed.Reason, nil
	case !errors.Is(err, dunlin.ErrNotFound):
		return "", fmt.Errorf("replay dead letter %s: its input was taken; whether the plugin failed again is not known: %w", id, err)
	}
	return "", s.drop(ctx, l)
}

func kindOf(in *dunlin.Input) string {
	switch in.Kind {
	case dunlin.InputTimer:
		return fmt.Sprintf("timer %q", in.Timer)
	case dunlin.InputResult:
		return fmt.Sprintf("the result of command %s", in.Timer)
	}
	return "something that happened to it"
}

// answered is a letter's waiter.
type answered chan dunlin.Receipt

// Done implements dunlin.Waiter.
func (a answered) Done(_ *dunlin.Uplink, r dunlin.Receipt) { a <- r }

// send lets a letter's input be received once more.
func (s *Service) send(ctx context.Context, l *dunlin.DeadLetter) (dunlin.Receipt, error) {
	done := make(answered, 1) // room for the one receipt
	in := l.Input
	in.MessageID, in.Flags, in.Received = 0, 0, s.cfg.Clock()
	in.Records, in.Payload = slices.Clone(in.Records), slices.Clone(in.Payload)
	s.deps.Ingestor.Ingest(&dunlin.Uplink{DeviceKey: l.DeviceKey, Input: in, Waiter: done,
		Sender: dunlin.Principal{Kind: dunlin.PrincipalOperator, Tenant: l.Tenant}})
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.LetterMax, fmt.Errorf("%w: the input was not committed in time, and may be later", dunlin.ErrUnavailable))
	defer cancel()
	select {
	case r := <-done:
		return r, r.Err
	case <-ctx.Done():
		return dunlin.Receipt{}, context.Cause(ctx)
	}
}

// DropLetter implements dunlin.Replayer.
func (s *Service) DropLetter(ctx context.Context, t dunlin.Tenant, id string) error {
	if t == "" {
		t = dunlin.DefaultTenant
	}
	l, err := s.letter(ctx, t, id)
	if err != nil {
		return err
	}
	return s.drop(ctx, l)
}

// drop removes a letter's row: here if this node owns the device's shard, else at the node that does.
func (s *Service) drop(ctx context.Context, l *dunlin.DeadLetter) error {
	sh := s.cfg.ShardOf(l.DeviceKey)
	began := s.cfg.Clock()
	for range ownerTries {
		err := dunlin.ErrNotOwner
		if _, ok := s.deps.Updates.Owned(sh); ok {
			err = s.dropHere(ctx, sh, l.DeviceKey, l.Key())
		} else if s.deps.Places != nil && s.deps.Caller != nil {
			if node, _, ok := s.deps.Places.Owner(sh); ok && node != s.cfg.Self {
				err = s.call(ctx, node, methodDrop, dropping{callVersion, l.Key()}, nil)
			}
		}
		if !errors.Is(err, dunlin.ErrNotOwner) {
			return err
		}
		if s.cfg.Clock().Sub(began) > ownerWait || !pause(ctx, ownerPause) {
			break
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w: shard %d has no owner for the moment", dunlin.ErrUnavailable, sh)
}

// dropping is what methodDrop asks.
type dropping struct {
	Version int    `json:"v"`
	Key     string `json:"key"`
}

func (s *Service) serveDrop(ctx context.Context, body []byte) error {
	var d dropping
	if err := json.Unmarshal(body, &d); err != nil || d.Version != callVersion {
		return fmt.Errorf("%w: %s of version %d", dunlin.ErrInvalid, methodDrop, d.Version)
	}
	key, _, _, err := dunlin.ParseDeadLetterKey(d.Key)
	if err != nil {
		return err
	}
	return s.dropHere(ctx, s.cfg.ShardOf(key), key, d.Key)
}

func (s *Service) dropHere(ctx context.Context, sh dunlin.ShardID, dev dunlin.DeviceKey, key string) error {
	if v := s.cfg.EntryVersion; v != nil && v() < entry.VersionEffects {
		return fmt.Errorf("%w: dead letters stay until every node of the cluster has been upgraded", dunlin.ErrUnavailable)
	}
	return s.deps.Updates.Update(ctx, sh, &dev, func(dunlin.Time, *dunlin.DeviceState) ([]dunlin.Put, error) {
		return []dunlin.Put{{Table: dunlin.TableDeadLetters, Key: key}}, nil
	})
}
