package placement

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	protocluster "github.com/asynkron/protoactor-go/cluster"

	"github.com/dunlin-iot/dunlin"
)

// Kind is the kind of the devices as protoactor's virtual actors, and their address.
const Kind = "dev"

// Lookup finds devices: the address of a device is the same on every node and needs no asking.
type Lookup struct{}

var _ protocluster.IdentityLookup = (*Lookup)(nil)

// Get implements protocluster.IdentityLookup.
func (*Lookup) Get(id *protocluster.ClusterIdentity) *actor.PID {
	if id.GetKind() != Kind {
		return nil
	}
	return actor.NewPID(Kind, id.GetIdentity())
}

// RemovePid implements protocluster.IdentityLookup. An address holds for ever.
func (*Lookup) RemovePid(*protocluster.ClusterIdentity, *actor.PID) {}

// Setup implements protocluster.IdentityLookup.
func (*Lookup) Setup(*protocluster.Cluster, []string, bool) {}

// Shutdown implements protocluster.IdentityLookup. protoactor would call it twice.
func (*Lookup) Shutdown() {}

// Provider tells protoactor who is a member, as Members says.
type Provider struct {
	r       *Remote
	cluster *protocluster.Cluster
	ids     map[dunlin.NodeID]memberID
	lives   int
}

// memberID is a member as protoactor knows it. protoactor blocks the id of a member that was gone once, for ever: a node
// that comes back, or that moves, is another member to it.
type memberID struct{ id, addr string }

var _ protocluster.ClusterProvider = (*Provider)(nil)

func newProvider(r *Remote) *Provider {
	return &Provider{r: r, ids: make(map[dunlin.NodeID]memberID)}
}

// StartMember implements protocluster.ClusterProvider.
func (p *Provider) StartMember(c *protocluster.Cluster) error {
	p.cluster = c
	return nil
}

// StartClient implements protocluster.ClusterProvider. Every node is a member; protoactor's clients can't be shut down.
func (p *Provider) StartClient(*protocluster.Cluster) error {
	return fmt.Errorf("%w: nodes are members", dunlin.ErrInvalid)
}

// Shutdown implements protocluster.ClusterProvider.
func (p *Provider) Shutdown(bool) error { return nil }

// push tells protoactor the living members. It publishes with its lock held, so push must run where nothing else waits for
// it: the keeper is the only caller.
func (p *Provider) push(members []dunlin.Member) {
	topology := protocluster.Members{p.member(p.r.cfg.System.ID, p.r.addr)}
	alive := make(map[dunlin.NodeID]bool, len(members))
	for i := range members {
		m := &members[i]
		if m.ID == p.r.cfg.Self || !m.Alive || m.State == dunlin.MemberLeft {
			continue
		}
		if _, _, err := splitAddr(m.Calls); err != nil {
			continue
		}
		alive[m.ID] = true
		id, ok := p.ids[m.ID]
		if !ok || id.addr != m.Calls {
			p.lives++
			id = memberID{m.ID.String() + "-" + strconv.Itoa(p.lives), m.Calls}
			p.ids[m.ID] = id
		}
		topology = append(topology, p.member(id.id, id.addr))
	}
	for id := range p.ids {
		if !alive[id] {
			delete(p.ids, id)
		}
	}
	p.cluster.MemberList.UpdateClusterTopology(topology)
}

func (p *Provider) member(id, addr string) *protocluster.Member {
	host, port, _ := splitAddr(addr)
	return &protocluster.Member{Id: id, Host: host, Port: int32(port), Kinds: []string{Kind}}
}

// requests is our cluster.Context. protoactor's own never tries again after a timeout, waits nanoseconds between attempts
// where it means milliseconds, and writes its options to a variable of the whole process.
type requests struct {
	r       *Remote
	cluster *protocluster.Cluster
}

func (r *Remote) newContext(c *protocluster.Cluster) protocluster.Context { return &requests{r, c} }

// errKind is what a request of a kind gets that nobody has.
var errKind = fmt.Errorf("%w: the cluster has no such kind", dunlin.ErrNotFound)

// Request implements protocluster.Context. A message is sent a second time only if the first can do no harm: it reached
// nobody, Again says that its answer sends it away, or it is Repeatable and half the time is over.
func (q *requests) Request(identity, kind string, message any, opts ...protocluster.GrainCallOption) (any, error) {
	pid, call := q.prepare(identity, kind, opts)
	if pid == nil {
		return nil, errKind
	}
	first := call.Timeout
	if q.r.cfg.Repeatable(message) {
		first = call.Timeout / 2
	}
	start := q.r.cfg.now()
	response, err := call.Context.RequestFuture(pid, message, first).Result()
	again := err == nil && q.r.cfg.Again(response) || errors.Is(err, actor.ErrDeadLetter) ||
		errors.Is(err, actor.ErrTimeout) && q.r.cfg.Repeatable(message)
	if left := call.Timeout - (q.r.cfg.now() - start); again && left > time.Millisecond {
		response, err = call.Context.RequestFuture(pid, message, left).Result()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: request to %s/%s: %w", dunlin.ErrUnavailable, kind, identity, err)
	}
	return response, nil
}

// RequestFuture implements protocluster.Context.
func (q *requests) RequestFuture(identity, kind string, message any, opts ...protocluster.GrainCallOption) (*actor.Future, error) {
	pid, call := q.prepare(identity, kind, opts)
	if pid == nil {
		return nil, errKind
	}
	return call.Context.RequestFuture(pid, message, call.Timeout), nil
}

func (q *requests) prepare(identity, kind string, opts []protocluster.GrainCallOption) (*actor.PID, *protocluster.GrainCallConfig) {
	call := protocluster.NewGrainCallOptions(q.cluster)
	for _, o := range opts {
		o(call)
	}
	return q.r.lookup.Get(protocluster.NewClusterIdentity(identity, kind)), call
}
