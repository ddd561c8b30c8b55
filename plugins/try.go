package plugins

import (
	"context"
	"errors"
	"fmt"

	"github.com/dunlin-iot/dunlin"
)

// triedEvent is what devices are said to have been through when their states are tried: nothing.
const triedEvent = `{"event":"changed","domain":""}`

// TryStates lets the stage's plugin take over copies of states that another version made: each work's State, marked with what
// Made it, behind a MIGRATE note and before an input without meaning. The works' inputs are ignored and their outcomes are nobody's. An
// error that matches dunlin.ErrInvalid is what the plugin has against a state.
func (h *Host) TryStates(ctx context.Context, st *dunlin.Stage, works []*dunlin.Work) error {
	now := h.cfg.Now()
	for _, w := range works {
		w.Inputs = []dunlin.Input{{Kind: dunlin.InputLifecycle, Format: dunlin.FormatJSON, Received: now, Payload: []byte(triedEvent)}}
	}
	if st.Rules != nil {
		h.rules.process(st, works)
		return tried(st, works, nil)
	}
	m, err := h.module(ctx, st.Hash, nil)
	if err != nil {
		return err
	}
	leave, err := h.admit()
	if err != nil {
		return err
	}
	defer leave()
	in, err := h.start(m, st.Config, now)
	if err != nil {
		return err
	}
	defer in.close()
	w := newWorker(&h.cfg.Limits)
	w.serve(st, m.manifest)
	for i := range works {
		one := works[i : i+1]
		w.encode(in, now, one)
		out, _, _, err := in.call(w.frame, now, true)
		if err == nil {
			err = w.decode(out, one, now, nil)
		}
		if err := tried(st, one, err); err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
	}
	return nil
}

func tried(st *dunlin.Stage, works []*dunlin.Work, err error) error {
	for _, w := range works {
		why := w.Outcome.Failure
		if err != nil {
			why = err.Error()
		}
		if why != "" {
			return fmt.Errorf("%w: stage %s can't take over the state of device %s, which another version made: %s", dunlin.ErrInvalid, st.Plugin, w.Device, why)
		}
	}
	return nil
}
