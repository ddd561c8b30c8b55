package placement

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/dunlin-iot/dunlin"
)

// door is the process behind callsID. It has no mailbox: a frame is dealt with in the goroutine that read it, which never
// waits, so that nothing queues here that a window does not bound.
type door Remote

// SendUserMessage implements actor.Process.
func (d *door) SendUserMessage(_ *actor.PID, message any) {
	_, m, _ := actor.UnwrapEnvelope(message)
	if v, ok := m.(*wrapperspb.BytesValue); ok {
		(*Remote)(d).handle(v.GetValue())
	}
}

// SendSystemMessage implements actor.Process. Calls can't be watched or stopped.
func (d *door) SendSystemMessage(*actor.PID, any) {}

// Stop implements actor.Process.
func (d *door) Stop(*actor.PID) {}

// handle deals with a frame. The gate has checked that it is of the node it names as sender.
func (r *Remote) handle(b []byte) {
	f, err := parseFrame(b)
	if err != nil {
		r.met.refused.Inc()
		return
	}
	if f.from != r.cfg.Self {
		if _, ok := r.peers.Load(f.from); !ok && r.strange(f.from) && f.kind != kindRequest {
			r.met.refused.Inc()
			return
		}
	}
	p := r.peer(f.from)
	switch {
	case f.version != frameVersion:
		r.refuse(p, &f, fmt.Errorf("%w: calls of version %d are not understood, only of %d", dunlin.ErrUnavailable, f.version, frameVersion))
	case f.to != r.cfg.Self:
		r.refuse(p, &f, fmt.Errorf("%w: a call to node %s came to node %s", dunlin.ErrUnavailable, f.to, r.cfg.Self))
	case f.kind == kindRequest:
		r.request(p, &f)
	case f.kind == kindAnswer:
		p.complete(f.call, f.body, nil)
	case f.kind == kindError:
		p.complete(f.call, nil, unpackError(f.arg, f.body))
	}
}

// refuse answers a request with an error; what is no request is dropped.
func (r *Remote) refuse(p *peer, f *frame, err error) {
	r.met.refused.Inc()
	if f.kind == kindRequest {
		p.answer(r.failure(f, err))
	}
}

func (r *Remote) failure(f *frame, err error) *frame {
	bits, text := packError(err)
	return &frame{version: frameVersion, kind: kindError, arg: bits, from: r.cfg.Self, to: f.from, call: f.call, body: []byte(text)}
}

// The refusals, made once.
var (
	errBusy     = fmt.Errorf("%w: too many calls of the node are being served", dunlin.ErrOverloaded)
	errPanicked = fmt.Errorf("internal error: the call panicked")
)

// request has a call served, if there is room for it: a peer keeps to its window, but a hostile one does not.
func (r *Remote) request(p *peer, f *frame) {
	bytes := int64(len(f.body) + frameOverhead)
	r.life.RLock()
	if r.life.closing {
		r.life.RUnlock()
		r.refuse(p, f, errClosed)
		return
	}
	n, b := p.serving.Add(1), p.servingBytes.Add(bytes)
	served := func() {
		p.servingBytes.Add(-bytes)
		p.serving.Add(-1)
	}
	if n > int64(r.cfg.ServeMax) || b > 2*r.cfg.WindowBytesMax {
		served()
		r.life.RUnlock()
		r.refuse(p, f, errBusy)
		return
	}
	g := *f
	r.wg.Go(func() {
		defer served()
		r.work(p, &g)
	})
	r.life.RUnlock()
}

// work serves one call and answers it.
func (r *Remote) work(p *peer, f *frame) {
	timeout := min(time.Duration(f.arg)*time.Millisecond, timeoutMax)
	ctx, cancel := context.WithTimeout(until(r.serve), timeout)
	defer cancel()
	body, err := r.guard(ctx, f)
	r.met.served.Inc()
	if err == nil && len(body) > r.cfg.BodyBytesMax {
		err = fmt.Errorf("%w: answer of %d bytes, at most %d", dunlin.ErrTooLarge, len(body), r.cfg.BodyBytesMax)
	}
	if err != nil {
		p.answer(r.failure(f, err))
		return
	}
	p.answer(&frame{version: frameVersion, kind: kindAnswer, from: r.cfg.Self, to: f.from, call: f.call, body: body})
}

// guard calls Serve. A panic is the call's own: what another node sends must not end this one.
func (r *Remote) guard(ctx context.Context, f *frame) (body []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			r.met.panics.Inc()
			r.cfg.Log.Error("a call panicked", slog.String("method", f.method), slog.String("node", f.from.String()),
				slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
			body, err = nil, errPanicked
		}
	}()
	return r.cfg.Serve(ctx, f.from, f.method, f.body)
}
