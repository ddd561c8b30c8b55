// Package peer links the nodes of a cluster: one mutually authenticated TLS connection for each pair of nodes, which carries
// Raft messages first and calls (snapshot chunks, joining, status) behind them.
// Part of the runtime; no compatibility promise before v1.
//
// # A connection
//
//	Send ──▶ queue of the peer, bounded in bytes ─┐ 1. control (ping, credit)       ┌─ Raft ──▶ OnMessages
//	Call ──▶ streams, those that have credit ─────┼─▶ 2. Raft, all of it   ─▶ TLS ─▶┼─ call ──▶ Serve, a goroutine each
//	answers of Serve ─────────────────────────────┘ 3. one piece ≤ 64 KiB of a body └─ answer ─▶ the waiting Call
//
// One goroutine writes: it takes whatever Raft messages have come, and one piece of a body, and writes both at once. One
// goroutine reads; nothing that it calls may block. A body goes only as far as the receiver has granted credit, and the
// receiver grants it only within a bound of bytes, so that neither a slow caller nor a big snapshot delays Raft or
// makes memory grow.
//
// # Which connection counts
//
// Both nodes of a pair may dial, and at once. The node with the smaller id decides: it says Use on the connection that shall
// count, with a number that grows, and the other one follows the highest number. It decides for its own connection unless
// the other side dials although it has heard of it, and has therefore lost it. So two that dial at the same moment
// end with one connection and no exchange of the two, and a connection that only one side knows to be dead is replaced by
// the other side's dial at once.
//
// # What must hold
//
//   - Send and OnMessages never block. What does not fit the queue, or finds no connection, is lost and counted.
//   - Bytes from the other side are hostile even behind a good certificate: every length is bounded before anything is
//     allocated for it, a fault ends the connection with a text, and nothing panics.
//   - A node counts as gone when nothing came from it for about DeadAfter, however much was sent to it. Each side speaks at
//     least four times in that time, and a pause of our own process does not count against the others.
//   - A refusal is told to the other side in words, and logged once, not at every attempt.
package peer
