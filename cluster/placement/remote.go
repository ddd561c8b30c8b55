package placement

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	protocluster "github.com/asynkron/protoactor-go/cluster"
	"github.com/asynkron/protoactor-go/remote"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/dunlin-iot/dunlin"
)

// callsID is the address of the calls on each node.
const callsID = "dunlin-calls"

var (
	errClosed = fmt.Errorf("%w: this node's calls are closing", dunlin.ErrUnavailable)
	errMoved  = errors.New("it has another address now")
	errFull   = fmt.Errorf("%w: the window of calls to the node is full", dunlin.ErrOverloaded)
)

// Remote is this node's end of the calls between nodes.
type Remote struct {
	cfg      Config
	met      *metrics
	cluster  *protocluster.Cluster
	provider *Provider
	lookup   *Lookup
	addr     string // where others reach this node
	pid      *actor.PID

	ids    atomic.Uint64 // of calls; begins anywhere, so that a late answer to an earlier process finds none
	peers  sync.Map      // dunlin.NodeID → *peer
	byAddr sync.Map      // string → *peer
	known  atomic.Pointer[map[dunlin.NodeID]dunlin.Member]
	out    outgoings

	poke  chan struct{} // a token: the members may have changed
	stop  chan struct{} // closed when everything has to end
	serve chan struct{} // closed when what is being served has to end
	wg    sync.WaitGroup
	life  struct {
		sync.RWMutex      // whoever hands something to protoactor reads; so nothing is handed to it after closed
		closing      bool // no new calls, either way
		closed       bool // no answers either
	}
}

// Start listens, and joins the system to protoactor's cluster.
//
// It does by hand what protoactor's StartMember does, but for what we don't use: its gossip (loses packets, blocks members
// for ever), its pub/sub and their kinds, and a second of sleep. Its Shutdown is not used either: it would sleep two.
func Start(cfg Config) (*Remote, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	r := &Remote{cfg: cfg, poke: make(chan struct{}, 1), stop: make(chan struct{}), serve: make(chan struct{})}
	r.ids.Store(rand.Uint64())
	r.out.all = make(map[*outgoing]struct{})
	var err error
	if r.met, err = newMetrics(cfg.Metrics, r); err != nil {
		return nil, fmt.Errorf("metrics of calls: %w", err)
	}
	r.lookup, r.provider = &Lookup{}, newProvider(r)
	// Before remote is attached: a second one would leave its listener behind when it fails.
	var fresh bool
	if r.pid, fresh = cfg.System.ProcessRegistry.Add((*door)(r), callsID); !fresh {
		r.met.close()
		return nil, fmt.Errorf("%w: the system takes calls already", dunlin.ErrConflict)
	}
	if err := r.listen(); err != nil {
		cfg.System.ProcessRegistry.Remove(r.pid)
		r.met.close()
		return nil, err
	}
	r.lookup.Setup(r.cluster, []string{Kind}, false)
	if err := r.provider.StartMember(r.cluster); err != nil {
		return nil, errors.Join(err, r.Close(until(r.stop)))
	}
	r.push()
	r.wg.Go(r.keep)
	return r, nil
}

// listen starts protoactor's remote. It opens its own listener and has no way to tell which port it was given but the
// address it takes when none is to be advertised; so a port for an address to advertise is looked for beforehand.
func (r *Remote) listen() error {
	host, port, err := splitAddr(r.cfg.Bind)
	if err != nil {
		return err
	}
	advertise, free := r.cfg.Advertise, false
	advHost, advPort, err := net.SplitHostPort(advertise)
	if advertise != "" && err != nil {
		advHost, advPort = strings.Trim(advertise, "[]"), "0"
	}
	if ip := net.ParseIP(host); advertise == "" && (host == "" || ip != nil && ip.IsUnspecified()) {
		return fmt.Errorf("%w: calls on %q need an address to advertise", dunlin.ErrInvalid, r.cfg.Bind)
	}
	for try := 0; ; try++ {
		if advertise != "" && (port == 0 || free) {
			if port, err = freePort(host); err != nil {
				return err
			}
			free = true
		}
		adv := ""
		if advertise != "" {
			adv = net.JoinHostPort(advHost, advPort)
			if advPort == "0" {
				adv = net.JoinHostPort(advHost, strconv.Itoa(port))
			}
		}
		if err = r.startRemote(host, port, adv); err == nil {
			r.addr = r.cfg.System.Address()
			return nil
		}
		if !free || try == 10 {
			return err
		}
	}
}

func freePort(host string) (int, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return 0, fmt.Errorf("%w: calls on %s: %w", dunlin.ErrUnavailable, host, err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// startRemote attaches a remote to the system; what it panics with is an error.
func (r *Remote) startRemote(host string, port int, advertise string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: calls on %s: %v", dunlin.ErrUnavailable, r.cfg.Bind, p)
		}
	}()
	if strings.Contains(host, ":") {
		host = "[" + host + "]" // remote joins host and port with a colon
	}
	rc := remote.Configure(host, port,
		remote.WithServerOptions(r.serverOptions()...), remote.WithDialOptions(r.dialOptions()...),
		remote.WithAdvertisedHost(advertise),
		// The ring grows with what the windows let in; to begin with, remote would allocate 16 MB for each address.
		remote.WithEndpointWriterBatchSize(batchFrames), remote.WithEndpointWriterQueueSize(batchFrames))
	rc.MaxRetryCount = 1 // each would sleep two seconds; see outgoing
	if r.cluster == nil {
		cc := protocluster.Configure(r.cfg.Cluster, r.provider, r.lookup, rc,
			protocluster.WithRequestTimeout(r.cfg.CallTimeout), protocluster.WithClusterContextProducer(r.newContext),
			protocluster.WithHeartbeatExpiration(100*365*24*time.Hour))
		cc.GossipInterval = 24 * time.Hour // if anybody started it
		r.cluster = protocluster.New(r.cfg.System, cc)
	}
	r.cluster.Config.RemoteConfig = rc
	r.cluster.Remote = remote.NewRemote(r.cfg.System, rc)
	r.cluster.IdentityLookup = r.lookup
	r.cluster.Remote.Start()
	return nil
}

func splitAddr(s string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(s)
	n, perr := strconv.ParseUint(p, 10, 16)
	if err != nil || perr != nil || len(s) > addrBytesMax {
		return "", 0, fmt.Errorf("%w: address %q, want host:port", dunlin.ErrInvalid, s)
	}
	return host, int(n), nil
}

// Addr returns host:port at which others reach this node.
func (r *Remote) Addr() string { return r.addr }

// Cluster returns protoactor's cluster: its Request reaches every device as ("<tenant>/<device>", "dev"). Close is the way
// to end it; its own Shutdown must not be called.
func (r *Remote) Cluster() *protocluster.Cluster { return r.cluster }

// Poke tells that Members may say something else now. It never blocks.
func (r *Remote) Poke() {
	select {
	case r.poke <- struct{}{}:
	default:
	}
}

// Go asks another node without waiting. It never blocks; done is called exactly once, perhaps before Go returns, and must
// not block either. ErrUnavailable may mean that the other node has done what it was asked; ErrOverloaded means it has not.
func (r *Remote) Go(to dunlin.NodeID, method string, body []byte, done func([]byte, error)) {
	if _, err := r.peer(to).begin(method, body, r.cfg.CallTimeout, done); err != nil {
		done(nil, err)
	}
}

// Call asks another node, or this one, and waits for its answer, at most until ctx ends.
func (r *Remote) Call(ctx context.Context, to dunlin.NodeID, method string, body []byte) ([]byte, error) {
	timeout := r.cfg.CallTimeout
	if end, ok := ctx.Deadline(); ok {
		timeout = min(time.Until(end), timeoutMax)
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("call %s of node %s: %w", method, to, context.Cause(ctx))
	}
	type answer struct {
		body []byte
		err  error
	}
	came := make(chan answer, 1)
	p := r.peer(to)
	id, err := p.begin(method, body, timeout, func(b []byte, err error) { came <- answer{b, err} })
	if err != nil {
		return nil, err
	}
	select {
	case a := <-came:
		return a.body, a.err
	case <-ctx.Done():
		p.drop(id)
		err := context.Cause(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("%w: %w", dunlin.ErrUnavailable, err)
		}
		return nil, fmt.Errorf("call %s of node %s: %w", method, to, err)
	}
}

// PeerStatus is how calls to another node go.
type PeerStatus struct {
	Node    dunlin.NodeID
	Addr    string
	Up      bool
	Error   string // why it is not up
	Calls   int    // to it, on their way
	Bytes   int64  // of these
	Serving int    // calls of it
}

// Peers lists the nodes that this one has to do with.
func (r *Remote) Peers() []PeerStatus {
	var all []PeerStatus
	r.peers.Range(func(_, v any) bool {
		p := v.(*peer)
		p.mu.Lock()
		s := PeerStatus{Node: p.node, Addr: p.mu.addr, Up: p.mu.state == stateUp, Calls: len(p.mu.calls), Bytes: p.mu.bytes,
			Serving: int(p.serving.Load())}
		if p.mu.err != nil {
			s.Error = p.mu.err.Error()
		}
		p.mu.Unlock()
		all = append(all, s)
		return true
	})
	slices.SortFunc(all, func(a, b PeerStatus) int {
		return slices.Compare(binary.BigEndian.AppendUint64(nil, uint64(a.Node)), binary.BigEndian.AppendUint64(nil, uint64(b.Node)))
	})
	return all
}

// peer returns the record of a node, made if there is none: begin finds out whether anybody knows the node.
func (r *Remote) peer(node dunlin.NodeID) *peer {
	if p, ok := r.peers.Load(node); ok {
		return p.(*peer)
	}
	p, _ := r.peers.LoadOrStore(node, newPeer(r, node))
	return p.(*peer)
}

// whereIs returns where a node takes calls.
func (r *Remote) whereIs(node dunlin.NodeID) (string, error) {
	if known := r.known.Load(); known != nil {
		m, ok := (*known)[node]
		switch {
		case ok && m.State == dunlin.MemberLeft:
			return "", fmt.Errorf("%w: node %s (%s) has left the cluster", dunlin.ErrUnavailable, m.Name, node)
		case ok && !m.Alive:
			return "", fmt.Errorf("%w: node %s (%s) is down", dunlin.ErrUnavailable, m.Name, node)
		case ok && r.cfg.AddrOf == nil && m.Calls != "":
			return m.Calls, nil
		}
	}
	if r.cfg.AddrOf != nil {
		if addr, ok := r.cfg.AddrOf(node); ok && addr != "" {
			return addr, nil
		}
	}
	return "", fmt.Errorf("%w: node %s is not known here", dunlin.ErrUnavailable, node)
}

// unknown returns whether Members does not list the node.
func (r *Remote) unknown(node dunlin.NodeID) bool {
	known := r.known.Load()
	if known == nil {
		return true
	}
	_, ok := (*known)[node]
	return !ok
}

// forget has protoactor drop its connection to an address, and what waits for it.
func (r *Remote) forget(addr string) {
	r.cfg.System.EventStream.Publish(&remote.EndpointTerminatedEvent{Address: addr})
}

// wrap puts a frame into the message that crosses remote.
func wrap(b []byte) *wrapperspb.BytesValue { return &wrapperspb.BytesValue{Value: b} }

// wrappedBytes is how long a frame of n bytes is then.
func wrappedBytes(n int) int64 { return int64(1 + protowire.SizeBytes(n)) }
