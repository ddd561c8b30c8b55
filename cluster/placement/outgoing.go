package placement

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/remote"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// outgoing is this node's stream to a peer, between remote's writer and gRPC. The writer never sees it fail, for it would
//   - sleep for two seconds after a failed attempt to connect, with everything queued behind it,
//   - drop what it could not send without telling anybody, and stop, but stay the address's writer, for ever,
//   - publish the end of a connection late, so that it hits the next one.
//
// Instead outgoing tells the peer at once, and the keeper has remote forget the address.
type outgoing struct {
	r      *Remote
	p      *peer // nil: to an address that is nobody's
	cancel context.CancelCauseFunc
	ctx    context.Context
	queued *atomic.Int64
	late   *time.Timer // ends an attempt that takes too long

	stream  grpc.ClientStream // nil: never connected
	greeted bool              // of RecvMsg, which has one caller at a time
	over    sync.Once
	ended   atomic.Bool
}

// outgoings is all of them.
type outgoings struct {
	sync.Mutex
	all     map[*outgoing]struct{}
	stopped error
}

func (o *outgoings) add(s *outgoing) {
	o.Lock()
	defer o.Unlock()
	o.all[s] = struct{}{}
	if o.stopped != nil {
		s.cancel(o.stopped)
	}
}

func (o *outgoings) remove(s *outgoing) {
	o.Lock()
	defer o.Unlock()
	delete(o.all, s)
}

// stop ends all streams, and those that are still to come.
func (o *outgoings) stop(why error) {
	o.Lock()
	defer o.Unlock()
	o.stopped = why
	for s := range o.all {
		s.cancel(why)
	}
}

// open is called by remote's writer for a new stream. It returns one in any case.
func (r *Remote) open(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s := &outgoing{r: r, queued: new(atomic.Int64)}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	s.late = time.AfterFunc(connectMax, func() { s.stop(fmt.Errorf("no connection within %v", connectMax)) })
	r.out.add(s)
	if p, ok := r.byAddr.Load(cc.Target()); ok {
		s.p = p.(*peer)
		s.queued = s.p.started(s) // from here on it may be ended by others
	} else {
		s.stop(errors.New("nobody is known there"))
	}
	var err error
	if s.stream, err = streamer(s.ctx, desc, cc, method, opts...); err != nil {
		s.stream = nil
		s.end(err)
	}
	return s, nil
}

// stop ends the stream from this side.
func (s *outgoing) stop(why error) { s.cancel(why) }

// end notes that the stream is over.
func (s *outgoing) end(err error) {
	s.over.Do(func() {
		s.ended.Store(true)
		s.late.Stop()
		if cause := context.Cause(s.ctx); cause != nil && !errors.Is(cause, context.Canceled) {
			err = cause // what gRPC makes of it says less
		}
		s.cancel(err)
		s.r.out.remove(s)
		if s.p != nil {
			s.p.down(s, err)
		}
	})
}

// SendMsg implements grpc.ClientStream. A batch that is too long for one message goes in several.
func (s *outgoing) SendMsg(m any) error {
	msg, ok := m.(*remote.RemoteMessage)
	if !ok || msg.GetMessageBatch() == nil {
		s.send(m)
		return nil
	}
	all := msg.GetMessageBatch()
	for rest := all.GetEnvelopes(); len(rest) > 0; {
		n, bytes := 0, 0
		for n < len(rest) && (n == 0 || bytes+len(rest[n].GetMessageData()) <= batchBytes) {
			bytes += len(rest[n].GetMessageData())
			n++
		}
		part := &remote.MessageBatch{TypeNames: all.TypeNames, Targets: all.Targets, Senders: all.Senders, Envelopes: rest[:n]}
		s.send(&remote.RemoteMessage{MessageType: &remote.RemoteMessage_MessageBatch{MessageBatch: part}})
		s.queued.Add(-int64(bytes))
		rest = rest[n:]
	}
	return nil
}

func (s *outgoing) send(m any) {
	if s.stream == nil || s.ended.Load() {
		return
	}
	if err := s.stream.SendMsg(m); err != nil {
		if errors.Is(err, io.EOF) { // the reason is what RecvMsg gets
			err = errors.New("the connection was lost")
		}
		s.end(err)
	}
}

// RecvMsg implements grpc.ClientStream. The first message is the answer to remote's greeting; if there is none, remote gets
// one made here, and then the end of the stream.
func (s *outgoing) RecvMsg(m any) error {
	var err error
	if s.stream == nil {
		err = io.EOF
	} else {
		err = s.stream.RecvMsg(m)
	}
	first := !s.greeted
	s.greeted = true
	msg, ok := m.(*remote.RemoteMessage)
	switch {
	case err == nil && ok && msg.GetConnectResponse().GetBlocked():
		err = errors.New("it has this node blocked")
	case err == nil && ok && first && msg.GetConnectResponse() != nil:
		s.late.Stop()
		if s.p != nil {
			s.p.up(s)
		}
		return nil
	case err == nil:
		err = errors.New("it hung up") // DisconnectRequest, or nonsense
	case errors.Is(err, io.EOF):
		err = errors.New("it ended the stream")
	}
	s.end(err)
	if first && ok {
		msg.Reset()
		msg.MessageType = &remote.RemoteMessage_ConnectResponse{ConnectResponse: &remote.ConnectResponse{}}
		return nil
	}
	return io.EOF
}

// CloseSend implements grpc.ClientStream: remote's writer stops.
func (s *outgoing) CloseSend() error {
	if s.stream != nil {
		_ = s.stream.CloseSend()
	}
	s.end(errors.New("closed"))
	return nil
}

// Context implements grpc.ClientStream.
func (s *outgoing) Context() context.Context { return s.ctx }

// Header implements grpc.ClientStream.
func (s *outgoing) Header() (metadata.MD, error) { return nil, nil }

// Trailer implements grpc.ClientStream.
func (s *outgoing) Trailer() metadata.MD { return nil }
