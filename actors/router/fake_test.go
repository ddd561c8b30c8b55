package router

import (
	"context"
	"hash/fnv"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/dunlin-iot/dunlin"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shardOf spreads devices over eight shards.
func shardOf(k dunlin.DeviceKey) dunlin.ShardID {
	h := fnv.New32a()
	_, _ = h.Write([]byte(k.Device))
	return dunlin.ShardID(h.Sum32() >> 7 % 8)
}

// nowhere is a Directory that owns nothing.
type nowhere struct{}

func (nowhere) Owned(dunlin.ShardID) (uint64, bool) { return 0, false }
func (nowhere) Ingest(*dunlin.Uplink)               { panic("nothing is owned here") }
func (nowhere) Holds(dunlin.ShardID) bool           { return false }
func (nowhere) Post(dunlin.ShardID, *dunlin.Uplink) *dunlin.Uplink {
	panic("nothing is owned here")
}

// goFunc is a Caller of uplinks alone.
type goFunc func(method string, body []byte, done func([]byte, error))

func (f goFunc) Call(context.Context, dunlin.NodeID, string, []byte) ([]byte, error) {
	return nil, dunlin.ErrUnavailable
}

func (f goFunc) Go(_ dunlin.NodeID, method string, body []byte, done func([]byte, error)) {
	f(method, body, done)
}

// two says that node 2 owns everything.
type two struct{}

func (two) Owner(dunlin.ShardID) (dunlin.NodeID, uint64, bool) { return 2, 1, true }
func (two) Hint(dunlin.ShardID, dunlin.NodeID, uint64)         {}
func (two) Replicas(dunlin.ShardID) []dunlin.NodeID            { return []dunlin.NodeID{2} }
func (two) Voters(dunlin.ShardID) []dunlin.NodeID              { return []dunlin.NodeID{2} }

type noState struct{ State }
type noRegistry struct{ Registry }
type noReads struct{}

func (noReads) ReadIndex(context.Context, dunlin.ShardID) error { return nil }
func (noReads) Fresh(dunlin.ShardID) (time.Duration, bool)      { return 0, false }

func bareRouter(t testing.TB, self dunlin.NodeID, local Local, caller Caller) *Router {
	t.Helper()
	if caller == nil {
		caller = goFunc(nil)
	}
	r, err := New(Config{Self: self, Shards: 8, ShardOf: shardOf}, Deps{Local: local, State: noState{}, Registry: noRegistry{}, Owners: two{},
		Reads: noReads{}, Caller: caller,
		MergeAlerts: func([]*dunlin.AlertsPage, dunlin.AlertsQuery) (*dunlin.AlertsPage, error) {
			return &dunlin.AlertsPage{}, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func contextOf(t testing.TB) (context.Context, context.CancelFunc) {
	return context.WithCancel(t.Context())
}
