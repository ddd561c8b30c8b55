package placement

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	protocluster "github.com/asynkron/protoactor-go/cluster"
	"github.com/asynkron/protoactor-go/remote"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/keys"
)

// attacker is a member whose certificate is good and whose intentions are not.
type attacker struct {
	t    *testing.T
	conn *grpc.ClientConn
	node dunlin.NodeID
}

func (w *world) attacker(t *testing.T, to *testNode, node dunlin.NodeID, secret keys.Secret) *attacker {
	t.Helper()
	_, client, err := secret.TLS(node, "evil", "c1")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+to.Addr(), grpc.WithTransportCredentials(credentials.NewTLS(client)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &attacker{t, conn, node}
}

// stream greets as remote does.
func (a *attacker) stream() remote.Remoting_ReceiveClient {
	a.t.Helper()
	s, err := remote.NewRemotingClient(a.conn).Receive(a.t.Context())
	if err != nil {
		a.t.Fatal(err)
	}
	send(a.t, s, &remote.RemoteMessage{MessageType: &remote.RemoteMessage_ConnectRequest{ConnectRequest: &remote.ConnectRequest{
		ConnectionType: &remote.ConnectRequest_ServerConnection{ServerConnection: &remote.ServerConnection{SystemId: "evil", Address: "127.0.0.1:9"}}}}})
	if _, err := s.Recv(); err != nil {
		a.t.Fatalf("greeting: %v", err)
	}
	return s
}

func send(t *testing.T, s remote.Remoting_ReceiveClient, m *remote.RemoteMessage) {
	t.Helper()
	if err := s.Send(m); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

func batch(b *remote.MessageBatch) *remote.RemoteMessage {
	return &remote.RemoteMessage{MessageType: &remote.RemoteMessage_MessageBatch{MessageBatch: b}}
}

// victim counts what reaches it, and notes if it is stopped.
type victim struct{ got, stopped atomic.Int64 }

func (v *victim) Receive(ctx actor.Context) {
	switch ctx.Message().(type) {
	case *actor.Started:
	case *actor.Stopping, *actor.Stopped:
		v.stopped.Add(1)
	default:
		v.got.Add(1)
	}
}

func mustMarshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// hostile is what remote itself would crash on, relay, or obey. Each is a batch; ended says whether it costs the stream.
func hostile(t testing.TB, self, to dunlin.NodeID, addr string) []struct {
	what  string
	b     *remote.MessageBatch
	ended bool
} {
	names, calls := []string{frameType}, []*actor.PID{actor.NewPID(addr, callsID)}
	victims := []*actor.PID{actor.NewPID(addr, "victim")}
	frameOf := func(f frame) []byte { return mustMarshal(t, wrap(f.bytes())) }
	good := frameOf(frame{version: frameVersion, kind: kindRequest, arg: 1000, from: self, to: to, call: 1, method: "m"})
	one := func(e *remote.MessageEnvelope) []*remote.MessageEnvelope { return []*remote.MessageEnvelope{e} }
	stop := mustMarshal(t, &actor.Stop{})
	return []struct {
		what  string
		b     *remote.MessageBatch
		ended bool
	}{
		{"a type that nobody knows", &remote.MessageBatch{TypeNames: []string{"no.such.Type"}, Targets: calls, Envelopes: one(&remote.MessageEnvelope{MessageData: good})}, false},
		{"stop an actor", &remote.MessageBatch{TypeNames: []string{"actor.Stop"}, Targets: victims, Envelopes: one(&remote.MessageEnvelope{MessageData: stop})}, false},
		{"poison an actor", &remote.MessageBatch{TypeNames: []string{"actor.PoisonPill"}, Targets: victims, Envelopes: one(&remote.MessageEnvelope{})}, false},
		{"a message to an actor", &remote.MessageBatch{TypeNames: names, Targets: victims, Envelopes: one(&remote.MessageEnvelope{MessageData: good})}, false},
		{"an actor to be made", &remote.MessageBatch{TypeNames: []string{"remote.ActorPidRequest"}, Targets: []*actor.PID{actor.NewPID(addr, "activator")},
			Envelopes: one(&remote.MessageEnvelope{MessageData: mustMarshal(t, &remote.ActorPidRequest{Name: "x", Kind: "y"})})}, false},
		{"an event for all", &remote.MessageBatch{TypeNames: []string{"cluster.ClusterTopology"}, Targets: []*actor.PID{actor.NewPID(addr, "eventstream")},
			Envelopes: one(&remote.MessageEnvelope{MessageData: mustMarshal(t, &protocluster.ClusterTopology{})})}, false},
		{"a serializer out of range", &remote.MessageBatch{TypeNames: names, Targets: calls, Envelopes: one(&remote.MessageEnvelope{MessageData: good, SerializerId: 7})}, false},
		{"a target without a name", &remote.MessageBatch{TypeNames: names, Targets: []*actor.PID{{}}, Envelopes: one(&remote.MessageEnvelope{MessageData: good})}, false},
		{"no type", &remote.MessageBatch{Targets: calls, Envelopes: one(&remote.MessageEnvelope{MessageData: good})}, true},
		{"a type out of range", &remote.MessageBatch{TypeNames: names, Targets: calls, Envelopes: one(&remote.MessageEnvelope{TypeId: -1, MessageData: good})}, true},
		{"a target out of range", &remote.MessageBatch{TypeNames: names, Targets: calls, Envelopes: one(&remote.MessageEnvelope{Target: 5, MessageData: good})}, true},
		{"no frame", &remote.MessageBatch{TypeNames: names, Targets: calls, Envelopes: one(&remote.MessageEnvelope{MessageData: []byte{0xff, 0xff, 0xff}})}, true},
		{"a short frame", &remote.MessageBatch{TypeNames: names, Targets: calls, Envelopes: one(&remote.MessageEnvelope{MessageData: mustMarshal(t, wrap([]byte("short")))})}, true},
		{"in another node's name", &remote.MessageBatch{TypeNames: names, Targets: calls, Envelopes: one(&remote.MessageEnvelope{
			MessageData: frameOf(frame{version: frameVersion, kind: kindAnswer, from: 2, to: to, call: 1})})}, true},
		{"a sender out of range, which nobody looks at", &remote.MessageBatch{TypeNames: names, Targets: calls, Envelopes: one(&remote.MessageEnvelope{Sender: 99, MessageData: good})}, false},
		{"a kind of frame that there is not", &remote.MessageBatch{TypeNames: names, Targets: calls, Envelopes: one(&remote.MessageEnvelope{
			MessageData: frameOf(frame{version: frameVersion, kind: 77, from: self, to: to})})}, false},
		{"a frame of another version", &remote.MessageBatch{TypeNames: names, Targets: calls, Envelopes: one(&remote.MessageEnvelope{
			MessageData: frameOf(frame{version: 9, kind: kindRequest, from: self, to: to, call: 3})})}, false},
		{"answers to what was not asked", &remote.MessageBatch{TypeNames: names, Targets: calls, Envelopes: one(&remote.MessageEnvelope{
			MessageData: frameOf(frame{version: frameVersion, kind: kindError, arg: 1 << 31, from: self, to: to, call: 3})})}, false},
	}
}

func TestAHostileMember(t *testing.T) {
	w := newWorld(t)
	a, b := w.node(1, nil), w.node(2, nil)
	w.connected()
	v := &victim{}
	if _, err := a.system.Root.SpawnNamed(actor.PropsFromProducer(func() actor.Actor { return v }), "victim"); err != nil {
		t.Fatal(err)
	}
	evil := w.attacker(t, a, 9, w.secret)
	c := remote.NewRemotingClient(evil.conn)
	if _, err := c.ListProcesses(t.Context(), &remote.ListProcessesRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("ListProcesses: %v", err)
	}
	if _, err := c.GetProcessDiagnostics(t.Context(), &remote.GetProcessDiagnosticsRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("GetProcessDiagnostics: %v", err)
	}
	for _, h := range hostile(t, 9, 1, a.Addr()) {
		s := evil.stream()
		send(t, s, batch(h.b))
		if h.ended {
			if _, err := s.Recv(); status.Code(err) != codes.InvalidArgument {
				t.Errorf("%s: the stream got %v", h.what, err)
			}
		} else if err := s.CloseSend(); err != nil {
			t.Error(err)
		} else if _, err := s.Recv(); !errors.Is(err, io.EOF) { // it was dealt with to the end
			t.Errorf("%s: the stream got %v", h.what, err)
		}
		if got, err := b.Call(t.Context(), 1, "m", []byte("still")); err != nil || string(got) != "m:still" {
			t.Fatalf("%s: then %q, %v", h.what, got, err)
		}
	}
	// Greetings of no sort that a member makes.
	for _, m := range []*remote.RemoteMessage{
		{}, {MessageType: &remote.RemoteMessage_ConnectRequest{ConnectRequest: &remote.ConnectRequest{}}},
		{MessageType: &remote.RemoteMessage_ConnectRequest{ConnectRequest: &remote.ConnectRequest{ConnectionType: &remote.ConnectRequest_ClientConnection{}}}},
		{MessageType: &remote.RemoteMessage_DisconnectRequest{}}, {MessageType: &remote.RemoteMessage_ConnectResponse{}},
	} {
		s, err := c.Receive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		send(t, s, m)
		_ = s.CloseSend()
		_, _ = s.Recv()
	}
	if v.got.Load() > 0 || v.stopped.Load() > 0 {
		t.Errorf("the victim got %d messages, was stopped %d times", v.got.Load(), v.stopped.Load())
	}
	if got, err := b.Call(t.Context(), 1, "m", nil); err != nil {
		t.Errorf("in the end: %q, %v", got, err)
	}
	if got := a.Cluster().MemberList.Length(); got != 2 {
		t.Errorf("%d members", got)
	}
}

// A member that floods is served as many calls at once as one may have, and harms no other.
func TestAFlood(t *testing.T) {
	w := newWorld(t)
	a := w.node(1, func(c *Config) { c.ServeMax = 8 })
	b := w.node(2, nil)
	w.connected()
	release := make(chan struct{})
	var most, now atomic.Int64
	a.serve = func(_ context.Context, from dunlin.NodeID, _ string, _ []byte) ([]byte, error) {
		if from == 9 {
			most.Store(max(most.Load(), now.Add(1)))
			<-release
		}
		return nil, nil
	}
	s := w.attacker(t, a, 9, w.secret).stream()
	f := frame{version: frameVersion, kind: kindRequest, arg: 60_000, from: 9, to: 1, method: "m", body: make([]byte, 1000)}
	for range 100 {
		var all []*remote.MessageEnvelope
		for range 64 {
			f.call++
			all = append(all, &remote.MessageEnvelope{MessageData: mustMarshal(t, wrap(f.bytes()))})
		}
		send(t, s, batch(&remote.MessageBatch{TypeNames: []string{frameType}, Targets: []*actor.PID{actor.NewPID(a.Addr(), callsID)}, Envelopes: all}))
	}
	eventually(t, 3*time.Second, "the flood is there", func() bool { return now.Load() == 8 })
	if _, err := b.Call(t.Context(), 1, "m", nil); err != nil {
		t.Errorf("another's call: %v", err)
	}
	close(release)
	if most.Load() > 8 {
		t.Errorf("%d calls at once", most.Load())
	}
	// More streams than anybody needs are refused.
	var open []*attacker
	for range streamsMax + 1 {
		x := w.attacker(t, a, 9, w.secret)
		st, err := remote.NewRemotingClient(x.conn).Receive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, x)
		if len(open) == streamsMax { // one is open from before
			if _, err := st.Recv(); status.Code(err) != codes.ResourceExhausted {
				t.Errorf("stream %d: %v", len(open)+1, err)
			}
			break
		}
		eventually(t, 3*time.Second, "the stream is there", func() bool { return a.peer(9).streams.Load() == int64(len(open)+1) })
	}
}

// Who shows no certificate, or one of another cluster's, does not get as far as a stream.
func TestStrangersStayOut(t *testing.T) {
	w := newWorld(t)
	a := w.node(1, nil)
	for what, creds := range map[string]*tls.Config{
		"no certificate":  {InsecureSkipVerify: true, NextProtos: []string{"h2"}},
		"another cluster": func() *tls.Config { _, c, _ := keys.NewSecret().TLS(9, "x", "c2"); return c }(),
	} {
		conn, err := grpc.NewClient("passthrough:///"+a.Addr(), grpc.WithTransportCredentials(credentials.NewTLS(creds)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		s, err := remote.NewRemotingClient(conn).Receive(ctx)
		if err == nil {
			_, err = s.Recv()
		}
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", what, err)
		}
		cancel()
		_ = conn.Close()
	}
	// Nor does a node that says it is this one.
	self := w.attacker(t, a, 1, w.secret)
	s, err := remote.NewRemotingClient(self.conn).Receive(t.Context())
	if err == nil {
		_, err = s.Recv()
	}
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("itself: %v", err)
	}
}

func FuzzFrame(f *testing.F) {
	f.Add((&frame{version: 1, kind: kindRequest, arg: 5, from: 1, to: 2, call: 3, method: "m", body: []byte("b")}).bytes())
	f.Add((&frame{version: 1, kind: kindError, arg: 5, from: 1, to: 2, call: 3, body: []byte("b")}).bytes())
	f.Add((&frame{version: 2, kind: 9}).bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseFrame(b)
		if err != nil || got.version != frameVersion {
			return
		}
		b = bytes.Clone(b)
		b[3] = 0 // nobody reads it
		if again := got.bytes(); !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}

// What the gate lets through has no index out of range, one type, one target, and its sender's name on it.
func FuzzGate(f *testing.F) {
	for _, h := range hostile(f, 9, 1, "h:1") {
		f.Add(mustMarshal(f, batch(h.b)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		msg := &remote.RemoteMessage{}
		if proto.Unmarshal(b, msg) != nil {
			return
		}
		r := &Remote{pid: actor.NewPID("h:1", callsID), poke: make(chan struct{}, 1)}
		r.met, _ = newMetrics(nil, r)
		s := &incoming{r: r, p: newPeer(r, 9)}
		pass, err := s.check(msg)
		m := msg.GetMessageBatch()
		if !pass || err != nil || m == nil {
			return
		}
		if len(m.Envelopes) == 0 || len(m.TypeNames) != 1 || m.TypeNames[0] != frameType || len(m.Targets) != 1 || m.Targets[0] != r.pid {
			t.Fatalf("let through: %v", m)
		}
		for _, e := range m.Envelopes {
			if e.TypeId != 0 || e.Target != 0 || e.Sender != 0 || e.SerializerId != 0 || e.MessageHeader != nil {
				t.Fatalf("let through: %v", e)
			}
			fr, err := unwrap(e.MessageData)
			if err != nil || frameFrom(fr) != 9 {
				t.Fatalf("let through: %x, %v", fr, err)
			}
			v := wrap(nil)
			if err := proto.Unmarshal(e.MessageData, v); err != nil || !bytes.Equal(v.GetValue(), fr) {
				t.Fatalf("the gate saw another frame than remote: %x and %x, %v", fr, v.GetValue(), err)
			}
		}
	})
}

func TestErrorsKeepWhatTheyAre(t *testing.T) {
	for _, e := range errs() {
		bits, text := packError(errors.Join(errors.New("x"), e))
		got := unpackError(bits, []byte(text))
		if !errors.Is(got, e) || got.Error() != "x\n"+e.Error() {
			t.Errorf("%v became %v", e, got)
		}
		n := 0
		for _, other := range errs() {
			if errors.Is(got, other) {
				n++
			}
		}
		if ctxErr := errors.Is(e, context.Canceled) || errors.Is(e, context.DeadlineExceeded); n != 1 && !ctxErr {
			t.Errorf("%v is %d errors over there", e, n)
		}
	}
	_, text := packError(errors.New(strings.Repeat("é", errorTextMax)))
	if got := unpackError(0, []byte(text)); len(got.Error()) > errorTextMax || errors.Is(got, dunlin.ErrInvalid) {
		t.Errorf("%d bytes", len(got.Error()))
	}
	if got := unpackError(1<<31, []byte{0xff}); got.Error() != "�" {
		t.Errorf("got %q", got)
	}
}

// Each gets its own answer.
func TestManyCallersAtOnce(t *testing.T) {
	w := newWorld(t)
	a, b := w.node(1, nil), w.node(2, nil)
	w.connected()
	var wg sync.WaitGroup
	var bad atomic.Int64
	for i := range 16 {
		wg.Go(func() {
			for j := range 50 {
				from, to := a, b
				if (i+j)%2 == 0 {
					from, to = b, a
				}
				body := bytes.Repeat([]byte{byte(i), byte(j)}, 100)
				got, err := from.Call(t.Context(), to.id, "m", body)
				if err != nil || !bytes.Equal(got[2:], body) {
					bad.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if bad.Load() > 0 {
		t.Errorf("%d of 800 calls went wrong", bad.Load())
	}
}

// The bytes are the cluster's: nodes of other builds read them.
func TestTheFormatOfFrames(t *testing.T) {
	for _, c := range []struct {
		f    frame
		want string
	}{
		{frame{version: 1, kind: kindRequest, arg: 5000, from: 1, to: 2, call: 3, method: "up", body: []byte("x")},
			"010102008813000001000000000000000200000000000000030000000000000075" + "7078"},
		{frame{version: 1, kind: kindError, arg: 1<<11 | 1<<12, from: 2, to: 1, call: 3, body: []byte("no")},
			"01030000001800000200000000000000010000000000000003000000000000006e6f"},
	} {
		if got := fmt.Sprintf("%x", c.f.bytes()); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
	if got := fmt.Sprintf("%x", mustMarshal(t, wrap([]byte("f")))); got != "0a0166" {
		t.Errorf("wrapped: %s", got)
	}
}
