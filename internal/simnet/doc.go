// Package simnet plays whole clusters in one process from one seed: replicas, the real store on a file system that forgets
// what was not synced, placement, devices and their clients, with a network, disks and clocks that misbehave, in virtual time.
// It has tests only; `go test ./internal/simnet -seeds 10000` plays more, `-seed N -trace` plays one again and says all.
// Part of the runtime; no compatibility promise before v1.
//
// # A world
//
//	clients ──uplinks, again and again──▶ any node ──▶ the owner's shell: device.Machine: Accept → plugin → Propose
//	   ▲                                                       │ entry
//	   └──────── ack ◀── applied ◀── committed ◀── replica.Machine ◀──network──▶ replica.Machine of the others
//	                                                  │ writes, fsyncs                controller: cluster/control on the
//	                                                  ▼                               meta shard's owner, rows in the meta shard
//	                                             store on vfs.MemFS
//
// Everything happens in one goroutine, one event after the other, in the order of virtual time; all chance comes from the
// seed. So a seed is a whole history, and plays the same again.
//
// # What must hold
//
//   - an entry at a shard's index is the same on all nodes, for ever; a device's versions have no gap, no message id twice
//   - what a client was told is committed is there, with that number, on every replica in the end
//   - one owner per shard and term
//   - replicas that applied as much have the same hash
//   - a timer fires once, an alert is raised once and cleared once
//   - a read after ReadIndex sees what was acknowledged before it
//   - once all faults are over, every shard is owned, placement comes to rest, and clients get their answers
//
// Planted bugs show that each of these can fail.
package simnet
