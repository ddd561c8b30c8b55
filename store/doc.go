// Package store lays the bytes of a node into Pebble: the Raft log of all shards in one engine, their applied state in a
// second, the archive of the log that was, and the journal that reads all three as one stream.
//
// # Two engines
//
//	dir/FORMAT     whose folder this is: version, cluster, node and its id, shards (format.go)
//	dir/LOCK       held while a process has the folder open
//	dir/log/       Raft log: one synced batch for all shards that have something to say (log.go)
//	dir/state/     everything that applying the log makes: devices, history, alerts, timers, registry, archive (state.go)
//	dir/incoming/  snapshots of shards on their way in (receive.go)
//
// An acknowledgement waits for the log's fsync only. The state engine has a write-ahead log too, but nobody waits for it:
// what a crash takes from it is applied again from the Raft log. So the log may be cut only behind what the state engine
// has surely kept, which is what State.Durable says and DB.Maintain moves on.
//
// # Invariants
//
//   - Applying is deterministic: the same entries make the same rows, however they are cut into batches, and however often
//     a crash makes us apply them again. Rows of devices, history and dead letters are merge operands, so applying reads
//     nothing; Pebble folds them later, and the folds are associative.
//   - An entry is applied with its index in one Pebble batch, or not at all.
//   - A replica comes whole or goes whole: a crash leaves what was before Install or Destroy, or what is after (install.go).
//   - Truncated ⊆ archived ⊆ durable ⊆ applied ⊆ committed, per shard.
//   - A disk that fails to keep what was written ends the process (Config.Fatal): nothing is acknowledged after that.
//
// Part of the runtime; no compatibility promise before v1.
package store
