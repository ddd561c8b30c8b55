// Package replica is the MultiRaft host: one Raft group a shard, one loop a node, one log write and one fsync a turn for
// all groups together. It declares the Log and the StateMachine that it drives.
// Part of the runtime; no compatibility promise before v1.
//
// # A turn
//
//	Propose ──▶ inbox ──┐                       ┌──▶ Log.Append: ONE batch, ONE fsync ──┐ written
//	Receive ──▶ inbox ──┼─▶ core (64 × RawNode) ┤                                       ├──▶ core ──▶ …
//	ticks ──────────────┘                       └──▶ StateMachine.Apply: ONE batch ─────┘ applied ──▶ done, OnOwner
//
// The core is a deterministic machine without goroutine, clock or I/O: proposals, messages, ticks and the completions of
// its writes go in; rows to append, entries to apply and messages to send come out. The Host is the shell around it: one
// loop goroutine that owns the core and applies, and one writer goroutine that appends, so that while the fsync of turn n
// runs, turn n−1 is applied and the proposals of turn n+1 gather. Where a group has other members, applying moves to a
// goroutine of its own, and every write to the writer: their heartbeats must not wait for a disk. Snapshots are made, fetched
// and installed beside all that. Machine is the core for simulations, without goroutines and time.
//
// The core is spread over core.go (the turn), elect.go (time, and messages of peers), beat.go (heartbeats), member.go (replica sets, leadership handed
// over, replicas that go), read.go, snap.go. group.go is what it knows of a shard, storage.go what Raft reads of it.
//
// # What must hold
//
//   - done(index, nil) is called only after the entry is on the disks of a majority AND applied here.
//   - A promise to a peer or to ourselves (a vote, an acknowledged append) leaves only after the fsync of all it rests on.
//     Messages that promise nothing (MsgApp) leave before.
//   - Entries are applied only once they are synced here, so the applied index never passes what the log can replay.
//   - An entry proposed in term T is acknowledged only if it committed in T. One committed in another term has no effect:
//     the state machine compares dunlin.Entry.Term with dunlin.Committed.Term.
//   - The log is truncated only up to what the state machine surely keeps (StateMachine.Durable) and the archive has.
//     Truncating by the in-memory applied index loses acknowledged data at the next crash.
//   - A replica that was destroyed and comes back has its term and its vote, and neither votes nor campaigns before it has applied
//     all that the one before may have acknowledged: the tombstone's floor. Nor does one that knows of no replica set.
//   - A snapshot is installed when nothing of its shard is being written or applied, and what Raft wants written behind it waits.
//   - The commit index is not written on its own: Raft finds it again. It is written, and synced, with a vote, with a term,
//     and before a membership change is applied, so that a node never campaigns with a membership that is two steps old.
//
// # Rows in the log
//
// A hard state is
//
//	┌───────────┬──────────────┬──────────────┬────────────────┐
//	│ version 1 │ uvarint term │ uvarint vote │ uvarint commit │
//	└───────────┴──────────────┴──────────────┴────────────────┘
//
// An entry's type is Raft's: 0 data (package entry), 1 and 2 a membership change (a raftpb.ConfChange or ConfChangeV2).
// Entry 1 of every group is its birth certificate, type 1, term 1: the bytes of the first replica set instead of a change.
// All first replicas write it by themselves and alike. Recover writes such an entry, too: it decrees a replica set, whatever the
// one before was. A replica set is
//
//	┌───────────┬──────────────────────────────┐
//	│ version 1 │ raftpb.ConfState, protobuf … │
//	└───────────┴──────────────────────────────┘
//
// and it is also what a StateMachine keeps as dunlin.Committed.Conf, in the same batch as the applied index.
//
// What Snapshots keeps of a destroyed replica is
//
//	┌───────────┬──────────────┬──────────────┬───────────────┐
//	│ version 1 │ uvarint term │ uvarint vote │ uvarint floor │
//	└───────────┴──────────────┴──────────────┴───────────────┘
//
// # Messages
//
// Between nodes go Raft's own (raftpb.Message), one Transport.Send a turn, with these agreements: a MsgHeartbeat's index is all
// that is committed, not only what its receiver has of it, so that a replica can tell how fresh it is; a MsgSnap's data is
// the snapshot's name, and a MsgSnapStatus says from its receiver that it is at it (index: of which), or that it gave up (reject).
//
//	┌───────────┬───────────────┬──────────────┬───────────────┬──────────────┬─────────────────┬──────────────────────────┐
//	│ version 1 │ uvarint shard │ uvarint from │ uvarint index │ uvarint term │ uvarint, id …   │ uvarint, replica set …   │
//	└───────────┴───────────────┴──────────────┴───────────────┴──────────────┴─────────────────┴──────────────────────────┘
//
// Heartbeats that carry nothing but themselves, and the answers to such, go as frames of beats, all of a pair of nodes together
// (beat.go), sent as messages of shard 0. The first byte tells them from protobuf, which has no field 0. Commit is what is committed of
// what the replica has, more is how much is committed beyond; an answer (kind 2) has neither. Kind 1 asks for the answer at once.
//
//	┌────────┬───────────┬──────────────┬────────────┬──────────────────────────┬──────────────┬────────────────┬──────────────┐
//	│ 0x00   │ version 1 │ uvarint from │ uvarint to │ uvarint shard << 2 | kind│ uvarint term │ uvarint commit │ uvarint more │…
//	└────────┴───────────┴──────────────┴────────────┴──────────────────────────┴──────────────┴────────────────┴──────────────┘
package replica
