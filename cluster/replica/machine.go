package replica

import (
	"context"

	"github.com/dunlin-iot/dunlin"
)

// Machine is the host without goroutines and without time: for simulations. Its caller feeds it (Propose, Deliver, Tick, …),
// calls Turn, and then takes what it wants done and does it when it likes: TakeSends, TakeWrite → Do → Written, TakeApply → Do →
// Applied, TakeExports → Exported, TakeFetches → Pull → Fetched. A crash is to throw the Machine away, with all that was not
// done, and to open another one. A Host is a shell around the same code.
//
// Writes must be done in the order taken, one at a time, and so must applies; both may be under way at once.
type Machine struct{}

// A Write is one batch for the log.
type Write struct{}

// Do writes the batch to Config.Log and installs snapshots with Config.Snapshots. It is what a crash may interrupt.
func (w *Write) Do() error { return nil }

// An Apply is one batch for the state machine.
type Apply struct{}

// Do applies the batch to Config.StateMachine.
func (a *Apply) Do() error { return nil }

// OpenMachine loads all groups. Config.Seed decides all that is random in it.
func OpenMachine(cfg Config) (*Machine, error) { return nil, dunlin.ErrUnavailable }

// Propose is Host.Propose without its bounds; done is called by Turn, or before Propose returns.
func (m *Machine) Propose(sh dunlin.ShardID, term uint64, data []byte, done func(index uint64, err error)) {
}

// Deliver takes a message of another node, as Host.Receive does.
func (m *Machine) Deliver(sh dunlin.ShardID, data []byte) error { return nil }

// Tick tells that TickEvery has passed.
func (m *Machine) Tick(now dunlin.Time) {}

// Turn works off what was fed: afterwards there may be something to take. It calls Config's callbacks, and those given to
// Propose and others. It returns whether it did anything.
func (m *Machine) Turn(now dunlin.Time) (bool, error) { return false, nil }

// TakeSends returns messages to be carried to other nodes; they may be lost, repeated and reordered.
func (m *Machine) TakeSends() []Message { return nil }

// TakeWrite returns the next batch for the log, nil if there is none.
func (m *Machine) TakeWrite() *Write { return nil }

// Written tells that Write.Do returned without an error, and that what it wrote survives a crash.
func (m *Machine) Written(w *Write) error { return nil }

// TakeApply returns the next batch for the state, nil if there is none or one is under way.
func (m *Machine) TakeApply() *Apply { return nil }

// Applied tells that Apply.Do returned without an error.
func (m *Machine) Applied(a *Apply) error { return nil }

// TakeExports returns the shards whose state somebody needs: call Snapshots.Export, then Exported.
func (m *Machine) TakeExports() []dunlin.ShardID { return nil }

// Exported tells what Export returned.
func (m *Machine) Exported(sh dunlin.ShardID, meta dunlin.SnapshotMeta, err error) {}

// TakeFetches returns snapshots to be received: call Pull, then Fetched.
func (m *Machine) TakeFetches() []dunlin.SnapshotMeta { return nil }

// Fetched tells what became of a fetch.
func (m *Machine) Fetched(meta dunlin.SnapshotMeta, err error) {}

// Compact is what a Host does every TruncateEvery: it asks up to where rows of the shard may go, given that they are not
// needed up to upTo. Log.Truncate may then be called with the result, if it is not 0.
func (m *Machine) Compact(sh dunlin.ShardID, upTo uint64) (uint64, error) { return 0, nil }

// Ensure is Host.Ensure.
func (m *Machine) Ensure(sh dunlin.ShardID) error { return nil }

// Destroy is Host.Destroy. It fails with dunlin.ErrUnavailable, and begins, while something of the shard is under way: call it
// again.
func (m *Machine) Destroy(sh dunlin.ShardID, removedAt uint64) error { return nil }

// Change is Host.Change.
func (m *Machine) Change(sh dunlin.ShardID, changes []ReplicaChange, done func(error)) {}

// Transfer is Host.Transfer.
func (m *Machine) Transfer(sh dunlin.ShardID, to dunlin.NodeID, done func(error)) {}

// ReadIndex is Host.ReadIndex.
func (m *Machine) ReadIndex(sh dunlin.ShardID, done func(error)) {}

// Abdicate is Host.Abdicate.
func (m *Machine) Abdicate(on bool) {}

// Status is Host.Status.
func (m *Machine) Status(sh dunlin.ShardID) Status { return Status{Shard: sh} }

// Owned is Host.Owned.
func (m *Machine) Owned(sh dunlin.ShardID) (term uint64, ok bool) { return 0, false }

// Campaign lets this node's replica of a shard stand for election now, as if its election timeout had passed.
func (m *Machine) Campaign(sh dunlin.ShardID) {}

// Close answers everything that is pending, as the end of Host.Run does.
func (m *Machine) Close() {}

// Pull receives a snapshot: it asks fetch for the chunks that are not here yet and adds them. progress, if not nil, is told
// after each.
func Pull(ctx context.Context, snaps Snapshots, fetch Fetcher, meta dunlin.SnapshotMeta, progress func()) error {
	return nil
}
