package placement

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/asynkron/protoactor-go/remote"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/dunlin-iot/dunlin"
)

// frameType is the name of the one type that crosses remote: wrapperspb.BytesValue, registered by its package for good.
const frameType = "google.protobuf.BytesValue"

// receiveMethod is the one method of remote's service that is let in.
const receiveMethod = "/remote.Remoting/Receive"

// messageBytesMax bounds what gRPC takes in one message. A message that is too long ends the stream without a word to the
// sender of what was in it: with gRPC's own 4 MiB, all but one of 2,001 messages of 16 KiB were lost. See outgoing.SendMsg.
func (r *Remote) messageBytesMax() int {
	return r.cfg.BodyBytesMax + frameOverhead + batchBytes + 64<<10
}

func (r *Remote) serverOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(credentials.NewTLS(r.cfg.Server)),
		grpc.MaxRecvMsgSize(r.messageBytesMax()),
		grpc.MaxConcurrentStreams(4), // on one connection; a peer has one
		grpc.MaxHeaderListSize(16 << 10),
		grpc.ConnectionTimeout(5 * time.Second),
		grpc.InitialWindowSize(1 << 20), grpc.InitialConnWindowSize(2 << 20),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.UnaryInterceptor(refuseUnary),
		grpc.StreamInterceptor(r.admit),
	}
}

func (r *Remote) dialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(&named{credentials.NewTLS(r.cfg.Client), r}),
		grpc.WithStreamInterceptor(r.open),
		grpc.WithInitialWindowSize(1 << 20), grpc.WithInitialConnWindowSize(2 << 20),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: connectMax}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
	}
}

// refuseUnary keeps ListProcesses and GetProcessDiagnostics from remote, which panics on them and takes the process with it.
func refuseUnary(_ context.Context, _ any, info *grpc.UnaryServerInfo, _ grpc.UnaryHandler) (any, error) {
	return nil, status.Errorf(codes.PermissionDenied, "%s is not served here", info.FullMethod)
}

// admit lets a member's stream in. remote trusts whatever it reads, with indexes and names of types in it: a panic, if
// anything that the gate lets through can still cause one, ends the stream only.
func (r *Remote) admit(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	if info.FullMethod != receiveMethod {
		return status.Errorf(codes.PermissionDenied, "%s is not served here", info.FullMethod)
	}
	node, err := r.nodeOf(ss.Context())
	if err != nil {
		r.met.refused.Inc()
		return status.Error(codes.Unauthenticated, err.Error())
	}
	p := r.peer(node)
	defer p.streams.Add(-1)
	if p.streams.Add(1) > streamsMax {
		return status.Errorf(codes.ResourceExhausted, "node %s has %d streams open", node, streamsMax)
	}
	defer func() {
		if pan := recover(); pan != nil {
			r.met.panics.Inc()
			r.cfg.Log.Error("a node's stream panicked", slog.String("node", node.String()), slog.Any("panic", pan))
			err = status.Error(codes.Internal, "internal error")
		}
	}()
	return handler(srv, &incoming{ServerStream: ss, r: r, p: p})
}

// nodeOf returns whom the certificate at the other end names.
func (r *Remote) nodeOf(ctx context.Context) (dunlin.NodeID, error) {
	gp, ok := grpcpeer.FromContext(ctx)
	if !ok {
		return 0, fmt.Errorf("%w: no peer", dunlin.ErrUnauthenticated)
	}
	return r.nodeIn(gp.AuthInfo)
}

func (r *Remote) nodeIn(info credentials.AuthInfo) (dunlin.NodeID, error) {
	ti, ok := info.(credentials.TLSInfo)
	if !ok {
		return 0, fmt.Errorf("%w: not TLS", dunlin.ErrUnauthenticated)
	}
	return r.nodeOfTLS(ti.State)
}

func (r *Remote) nodeOfTLS(cs tls.ConnectionState) (dunlin.NodeID, error) {
	node, _, err := r.cfg.PeerOf(cs)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%w: %w", dunlin.ErrUnauthenticated, err)
	case node == 0 || node == r.cfg.Self:
		return 0, fmt.Errorf("%w: the certificate is of node %s", dunlin.ErrUnauthenticated, node)
	case r.left(node):
		return 0, fmt.Errorf("%w: node %s has left the cluster", dunlin.ErrForbidden, node)
	}
	return node, nil
}

// left returns whether the node is gone for good.
func (r *Remote) left(node dunlin.NodeID) bool {
	known := r.known.Load()
	return known != nil && (*known)[node].State == dunlin.MemberLeft
}

// named is TLS that also checks that the other end is the node which is expected at the address.
type named struct {
	credentials.TransportCredentials
	r *Remote
}

// ClientHandshake implements credentials.TransportCredentials.
func (c *named) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		return nil, nil, err
	}
	node, err := c.r.nodeIn(info)
	if p, ok := c.r.byAddr.Load(authority); err == nil && ok && p.(*peer).node != node {
		err = fmt.Errorf("%w: at %s is node %s, not %s", dunlin.ErrUnavailable, authority, node, p.(*peer).node)
	}
	if err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	return conn, info, nil
}

// Clone implements credentials.TransportCredentials.
func (c *named) Clone() credentials.TransportCredentials {
	return &named{c.TransportCredentials.Clone(), c.r}
}

// incoming is a peer's stream to this node, with what remote must not see left out.
type incoming struct {
	grpc.ServerStream
	r *Remote
	p *peer
}

// RecvMsg implements grpc.ServerStream.
func (s *incoming) RecvMsg(m any) error {
	for {
		if err := s.ServerStream.RecvMsg(m); err != nil {
			return err
		}
		msg, ok := m.(*remote.RemoteMessage)
		if !ok {
			return status.Errorf(codes.Internal, "message %T", m)
		}
		pass, err := s.check(msg)
		if err != nil {
			s.r.met.refused.Inc()
			if s.p.warn() {
				s.r.cfg.Log.Warn("a node's stream was ended for what came", slog.String("node", s.p.node.String()), slog.Any("err", err))
			}
			return status.Error(codes.InvalidArgument, err.Error())
		}
		if pass {
			return nil
		}
		msg.Reset()
	}
}

// check lets the greeting and frames through. What is well-formed but not for us is left out; what is not ends the stream.
func (s *incoming) check(msg *remote.RemoteMessage) (pass bool, err error) {
	if s.r.left(s.p.node) {
		return false, fmt.Errorf("%w: node %s has left the cluster", dunlin.ErrForbidden, s.p.node)
	}
	switch t := msg.GetMessageType().(type) {
	case *remote.RemoteMessage_ConnectRequest:
		sc := t.ConnectRequest.GetServerConnection()
		if sc == nil {
			return false, fmt.Errorf("%w: greeting of something that is not a member", dunlin.ErrInvalid)
		}
		if _, _, err := splitAddr(sc.GetAddress()); err != nil {
			return false, err
		}
		s.p.heard(sc.GetAddress())
		return true, nil
	case *remote.RemoteMessage_MessageBatch:
		return s.filter(t.MessageBatch)
	default:
		s.r.met.refused.Inc()
		return false, nil
	}
}

// filter leaves the frames of a batch, all of them addressed to this node's calls, whatever address the sender took.
func (s *incoming) filter(b *remote.MessageBatch) (pass bool, err error) {
	kept := b.Envelopes[:0]
	for _, e := range b.Envelopes {
		if e == nil || e.TypeId < 0 || int(e.TypeId) >= len(b.TypeNames) || e.Target < 0 || int(e.Target) >= len(b.Targets) {
			return false, fmt.Errorf("%w: batch with an index out of range", dunlin.ErrInvalid)
		}
		if b.TypeNames[e.TypeId] != frameType || e.SerializerId != 0 || b.Targets[e.Target].GetId() != callsID {
			s.r.met.refused.Inc()
			continue
		}
		f, err := unwrap(e.MessageData)
		if err != nil {
			return false, err
		}
		if from := frameFrom(f); from != s.p.node {
			return false, fmt.Errorf("%w: node %s sent a frame as node %s", dunlin.ErrForbidden, s.p.node, from)
		}
		e.TypeId, e.Target, e.TargetRequestId, e.Sender, e.SenderRequestId, e.MessageHeader = 0, 0, 0, 0, 0, nil
		kept = append(kept, e)
	}
	b.TypeNames, b.Targets, b.Senders, b.Envelopes = []string{frameType}, []*actor.PID{s.r.pid}, nil, kept
	return len(kept) > 0, nil
}

// unwrap finds the frame in a BytesValue's bytes, without a copy.
func unwrap(b []byte) ([]byte, error) {
	num, typ, n := protowire.ConsumeTag(b)
	if n > 0 && num == 1 && typ == protowire.BytesType {
		if f, m := protowire.ConsumeBytes(b[n:]); m > 0 && n+m == len(b) && len(f) >= frameHeadBytes {
			return f, nil
		}
	}
	return nil, fmt.Errorf("%w: no frame in a message of %d bytes", dunlin.ErrInvalid, len(b))
}
