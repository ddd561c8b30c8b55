package peer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin"
)

const (
	peersMax  = 4096             // nodes, members or not, that were ever linked or asked for
	guestsMax = 16               // connections for one call at a time
	notesMax  = 256              // addresses whose failures are remembered as logged
	noteAgain = 10 * time.Minute // until the same failure is logged again
)

// Message is a Raft message for another node's replica of a shard.
type Message struct {
	To    uint64 // node
	Shard dunlin.ShardID
	Data  []byte
}

// message is a Message of whatever name.
type message interface {
	~struct {
		To    uint64
		Shard dunlin.ShardID
		Data  []byte
	}
}

// PeerStatus is what a link knows about another node.
type PeerStatus struct {
	Node      dunlin.NodeID
	Name      string // as its Hello said; "" before the first
	Addr      string // of the connection, or what is being dialled
	Connected bool
	Since     time.Duration // how long it has been connected, or not
	RTT       time.Duration // smoothed; 0: not known
	Queue     int           // bytes of Raft messages waiting
	Dropped   uint64        // Raft messages lost here because the queue was full or nobody was connected
	Wire      uint32        // version agreed on; 0: none
	Version   string        // of its binary
	Problem   string        // why it is not connected; "" if it is
}

// Links are a node's connections to the others.
type Links struct {
	cfg      Config
	boot     uint64 // random: this life
	listener net.Listener
	m        *metrics
	guest    *peer         // whom connections for one call belong to
	slots    chan struct{} // size HandshakesMax: incoming connections that have not said who they are
	running  atomic.Bool
	closed   chan struct{} // closed when Run ends
	wake     chan struct{} // size 1: a set flag, that there is a peer without a loop
	started  chan *conn    // size 0: dialled connections for Run to drive

	serving sync.WaitGroup // goroutines in Serve
	guests  atomic.Int32
	cluster atomic.Pointer[string]
	peers   atomic.Pointer[map[dunlin.NodeID]*peer] // copied to change, under mu

	mu struct {
		sync.Mutex
		left  map[dunlin.NodeID]bool
		conns map[*conn]struct{}
		notes map[string]note
		hosts map[string]int // incoming connections that have not said who they are
	}
}

type note struct {
	text string
	at   time.Duration
}

// Open listens. Nothing else happens before Run.
func Open(cfg Config) (*Links, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	l := &Links{cfg: cfg, boot: rand.Uint64() | 1, slots: make(chan struct{}, cfg.HandshakesMax), closed: make(chan struct{}),
		wake: make(chan struct{}, 1), started: make(chan *conn)}
	l.cfg.Server, l.cfg.Client = settings(cfg.Server), settings(cfg.Client)
	l.guest = newPeer(l, 0)
	l.cluster.Store(&cfg.Self.Cluster)
	l.peers.Store(&map[dunlin.NodeID]*peer{})
	l.mu.left, l.mu.conns = map[dunlin.NodeID]bool{}, map[*conn]struct{}{}
	l.mu.notes, l.mu.hosts = map[string]note{}, map[string]int{}
	var err error
	if l.m, err = newMetrics(l, cfg.Metrics); err != nil {
		return nil, err
	}
	if l.listener, err = net.Listen("tcp", cfg.Addr); err != nil {
		return nil, fmt.Errorf("listen for other nodes: %w", err)
	}
	return l, nil
}

// Close frees the address if Run was never called.
func (l *Links) Close() error { return l.listener.Close() }

// Addr is where it listens.
func (l *Links) Addr() net.Addr { return l.listener.Addr() }

// SetCluster sets the cluster's id once this node has joined it: from then on it links with its members.
func (l *Links) SetCluster(id string) { l.cluster.Store(&id) }

// Run serves and dials until ctx ends, and returns once all it started has ended. It may be called once.
func (l *Links) Run(ctx context.Context) error {
	if l.running.Swap(true) {
		return fmt.Errorf("%w: links run already", dunlin.ErrConflict)
	}
	var wg sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { l.listener.Close() })
	defer stop()
	wg.Go(func() { l.accept(ctx, &wg) })
	l.tend(ctx, &wg)
	close(l.closed)
	wg.Wait()
	l.serving.Wait()
	return nil
}

// tend starts what is to be started, and ticks.
func (l *Links) tend(ctx context.Context, wg *sync.WaitGroup) {
	tick := time.NewTicker(l.cfg.DeadAfter / deadTicks)
	defer tick.Stop()
	set(l.wake) // peers from before Run
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-l.started:
			wg.Go(func() { l.drive(ctx, c) })
		case <-l.wake:
			for _, p := range *l.peers.Load() {
				p.mu.Lock()
				start := !p.mu.looping
				p.mu.looping = true
				p.mu.Unlock()
				if start {
					wg.Go(func() { p.loop(ctx) })
				}
			}
		case <-tick.C:
			l.mu.Lock()
			conns := slices.Collect(maps.Keys(l.mu.conns))
			l.mu.Unlock()
			for _, c := range conns {
				c.tick()
			}
			for _, p := range *l.peers.Load() {
				p.look()
			}
		}
	}
}

// start hands a dialled connection to Run.
func (l *Links) start(c *conn) {
	select {
	case l.started <- c:
	case <-l.closed:
		c.fail(errClosing)
	}
}

// drive runs a connection until it ends.
func (l *Links) drive(ctx context.Context, c *conn) {
	l.mu.Lock()
	l.mu.conns[c] = struct{}{}
	l.mu.Unlock()
	err := c.run(ctx)
	l.mu.Lock()
	delete(l.mu.conns, c)
	l.mu.Unlock()
	if c.kind == kindLink {
		c.p.lost(c)
	}
	var r *Refusal
	if errors.As(err, &r) && r.Theirs && r.Reason.lasting() && !c.dialled && !c.used.Load() { // otherwise the peer has told
		host, _, _ := net.SplitHostPort(c.wire.RemoteAddr().String())
		level := slog.LevelError
		if r.Reason == RefusedLeft { // as was asked for, and OnRefused is told
			level = slog.LevelDebug
		}
		l.note(host, level, "another node turned this one away", c.wire.RemoteAddr().String(), err)
		l.cfg.OnRefused(c.them.Node, err)
	}
	l.log(slog.LevelDebug, "connection ended", slog.String("peer", c.them.Node.String()), slog.String("name", c.them.Name), slog.Any("err", err))
}

// peer returns the peer of an id, and makes it if need be; nil: there are too many.
func (l *Links) peer(id dunlin.NodeID) *peer {
	if p := (*l.peers.Load())[id]; p != nil {
		return p
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	old := *l.peers.Load()
	if p := old[id]; p != nil {
		return p
	}
	if len(old) >= peersMax {
		return nil
	}
	next := maps.Clone(old)
	p := newPeer(l, id)
	p.mu.forgotten = l.mu.left[id]
	next[id] = p
	l.peers.Store(&next)
	set(l.wake)
	return p
}

// Send sends Raft messages. It never blocks: what does not fit a node's queue, or finds no connection, is lost. The messages'
// data is the link's from now on; the batch itself is the caller's again.
func (l *Links) Send(batch []Message) { Send(l, batch) }

// Send is Links.Send for messages of another package's type with the same fields.
func Send[M message](l *Links, batch []M) {
	var seen [8]uint64 // nodes that this batch has been gone through for
	n := 0
next:
	for i := range batch {
		to := Message(batch[i]).To
		for _, s := range seen[:n] {
			if s == to {
				continue next
			}
		}
		if n < len(seen) {
			seen[n] = to
			n++
			sendTo(l, dunlin.NodeID(to), batch[i:])
		} else { // a message to a node beyond the eighth goes by itself
			sendTo(l, dunlin.NodeID(to), batch[i:i+1])
		}
	}
}

func sendTo[M message](l *Links, to dunlin.NodeID, batch []M) {
	if to == 0 || to == l.cfg.Self.Node {
		return
	}
	p := l.peer(to)
	if p == nil {
		return
	}
	if c := p.cur.Load(); c != nil {
		queue(c, batch)
		return
	}
	p.want()
	for i := range batch {
		if Message(batch[i]).To == uint64(to) {
			p.dropped.Add(1)
		}
	}
}

// Call asks another node and waits for its answer. body and answer are at most BodyBytesMax. The error is one of dunlin's
// if the other side's was, with its text; ErrUnavailable if the node can't be reached or is lost meanwhile, in which case
// it may or may not have served the call; ErrOverloaded if too many calls are under way. A call to this node itself is
// served at once. body must not be changed before Call returns, and may still be read a moment longer.
func (l *Links) Call(ctx context.Context, to dunlin.NodeID, method string, body []byte) ([]byte, error) {
	if err := checkCall(method, body); err != nil {
		return nil, err
	}
	if to == l.cfg.Self.Node {
		return l.cfg.Serve(ctx, to, method, body)
	}
	if to == 0 {
		return nil, fmt.Errorf("%w: %s to no node", dunlin.ErrInvalid, method)
	}
	p := l.peer(to)
	if p == nil {
		return nil, fmt.Errorf("%w: %s to node %s: more than %d nodes", dunlin.ErrOverloaded, method, to, peersMax)
	}
	c, err := p.link(ctx)
	if err != nil {
		l.m.called(err)
		return nil, fmt.Errorf("%s to node %s: %w", method, to, err)
	}
	answer, err := c.call(ctx, method, body)
	l.m.called(err)
	return answer, err
}

func checkCall(method string, body []byte) error {
	switch {
	case method == "" || len(method) > methodMax:
		return fmt.Errorf("%w: method of %d bytes, want 1 to %d", dunlin.ErrInvalid, len(method), methodMax)
	case len(body) > BodyBytesMax:
		return fmt.Errorf("%w: %s with %d bytes, want at most %d", dunlin.ErrTooLarge, method, len(body), BodyBytesMax)
	}
	return nil
}

// CallAddr asks whoever listens at an address, over a connection of its own: before one has joined, or knows anybody. It does
// not need Run. The Hello is the other side's, also if the call failed once it was reached.
func (l *Links) CallAddr(ctx context.Context, addr, method string, body []byte) ([]byte, Hello, error) {
	if err := checkCall(method, body); err != nil {
		return nil, Hello{}, err
	}
	dialCtx, cancel := context.WithTimeoutCause(ctx, l.cfg.DialTimeout, fmt.Errorf("%w: no answer within %s", dunlin.ErrUnavailable, l.cfg.DialTimeout))
	defer cancel()
	c, err := l.connect(dialCtx, addr, kindCall, l.guest)
	if err != nil {
		return nil, Hello{}, fmt.Errorf("%s to %s: %w", method, addr, err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer c.fail(errClosing)
	wg.Go(func() { _ = c.run(ctx) }) // the call says why
	wg.Go(func() {
		tick := time.NewTicker(l.cfg.DeadAfter / deadTicks)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				c.tick()
			case <-c.done:
				return
			}
		}
	})
	answer, err := c.call(ctx, method, body)
	l.m.called(err)
	return answer, c.them.Hello, err
}

// Peers lists the nodes that there is or was a link to, by id.
func (l *Links) Peers() []PeerStatus {
	var list []PeerStatus
	for _, p := range *l.peers.Load() {
		list = append(list, p.status())
	}
	slices.SortFunc(list, func(a, b PeerStatus) int { return cmp.Compare(a.Node, b.Node) })
	return list
}

// Kick dials a node now instead of waiting for the next attempt.
func (l *Links) Kick(node dunlin.NodeID) {
	if node == 0 || node == l.cfg.Self.Node {
		return
	}
	if p := l.peer(node); p != nil && p.cur.Load() == nil {
		p.again(nil)
	}
}

// Forget ends the link to a node that has left, and refuses it from now on.
func (l *Links) Forget(node dunlin.NodeID) {
	l.mu.Lock()
	l.mu.left[node] = true
	p := (*l.peers.Load())[node]
	l.mu.Unlock()
	if p == nil {
		return
	}
	p.mu.Lock()
	p.mu.forgotten = true
	p.changedLocked()
	p.mu.Unlock()
	if c := p.cur.Load(); c != nil {
		r := l.left(node)
		c.refuse(r)
	}
}

func (l *Links) left(node dunlin.NodeID) *Refusal {
	return refuse(RefusedLeft, "node %s has left cluster %s for good: start it with an empty data folder to join again", node, *l.cluster.Load())
}

func (l *Links) log(level slog.Level, msg string, attrs ...any) {
	switch level {
	case slog.LevelError:
		l.cfg.Logger.Error(msg, attrs...)
	case slog.LevelInfo:
		l.cfg.Logger.Info(msg, attrs...)
	default:
		l.cfg.Logger.Debug(msg, attrs...)
	}
}
