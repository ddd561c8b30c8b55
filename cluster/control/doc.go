// Package control decides where replicas live and who owns what. It is pure: from a View of the cluster (members, committed
// placement, what the shards' owners report) it makes a list of Actions, each a small step that may be repeated, fail, or be
// carried on by another controller. It keeps nothing that matters: what must survive is in the placement rows.
// Part of the runtime; no compatibility promise before v1.
//
// A replica moves like this; the row is the shard's Placement, conf is what its Raft group says:
//
//	row names D as a learner, with the move (from C, to D, why)   D's node makes an empty replica
//	conf: add learner D                                          the owner feeds it: log or snapshot
//	…until D is caught up; leadership goes away from C           nothing else of the shard moves meanwhile
//	conf: ONE joint change: D becomes a voter, C goes
//	row follows conf, with its index                             C's node destroys its replica
//
// Conf is the truth about who votes: the row follows it, unless the report of it is older than the row (Placement.ConfIndex).
// The row is the truth about what is meant: a learner that it names and conf lacks is still to be added.
//
// No step is taken that a majority of living voters would not survive, before and after; a shard without one is left alone
// and told of in Health.
package control
