package replica

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/dunlin-iot/dunlin"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

// What an idle node does is heartbeats, and what a heartbeat costs is not Raft's work but that somebody is woken for it. So
// the shards of a pair of nodes share them:
//
//   - All heartbeats of a node for another one, and its answers to the other's, are one message, a frame of beats.
//   - An answer waits for the node's own next heartbeats, unless the owner is in a hurry: it has entries that are not
//     committed, or the replica lacks some that are.
//   - Who gets heartbeats and would send its own within a tick sends them now. So the nodes fall into step: one begins, the
//     others answer, and each is woken once in a round.
//   - A heartbeat that tells a replica nothing new is not given to Raft, which would answer as is done here.
//
// Heartbeats that ask something (ReadIndex) go by themselves.

// beat is a heartbeat, or the answer to one.
type beat struct {
	shard  dunlin.ShardID
	kind   beatKind
	term   uint64
	commit uint64 // of a heartbeat: what is committed of what the replica has
	index  uint64 // of a heartbeat: what is committed at all
}

type beatKind uint8

const (
	beatTold   beatKind = iota // answer when it suits
	beatUrgent                 // answer at once
	beatAnswer
	beatKinds
)

const (
	beatsMark     = 0 // begins a frame of beats and no protobuf: there is no field 0
	beatsVersion  = 1
	beatsBytesMax = 32 << 10 // of a frame; more beats are another one
)

// beatsTo are the beats on their way to one node.
type beatsTo struct {
	to   uint64
	list []beat
	due  bool // they must not wait
}

func (c *core) beatsTo(to uint64) *beatsTo {
	for i := range c.beats {
		if c.beats[i].to == to {
			return &c.beats[i]
		}
	}
	c.beats = append(c.beats, beatsTo{to: to})
	return &c.beats[len(c.beats)-1]
}

// sendBeat takes a message that goes with others. False: it goes by itself.
func (c *core) sendBeat(g *group, m *pb.Message) bool {
	if len(m.Context) > 0 || m.GetReject() {
		return false
	}
	b := beat{shard: g.shard, term: m.GetTerm()}
	switch m.GetType() {
	case pb.MsgHeartbeat:
		b.commit, b.index = m.GetCommit(), max(g.commit, m.GetCommit())
		if g.last > g.commit || b.commit < b.index {
			b.kind = beatUrgent
		}
	case pb.MsgHeartbeatResp:
		b.kind = beatAnswer
	default:
		return false
	}
	c.addBeat(m.GetTo(), b)
	return true
}

func (c *core) addBeat(to uint64, b beat) {
	t := c.beatsTo(to)
	t.list = append(t.list, b)
	t.due = t.due || b.kind != beatAnswer
}

// sendBeats puts the frames that are due behind the other messages.
func (c *core) sendBeats() {
	for i := range c.beats {
		t := &c.beats[i]
		if !t.due || len(t.list) == 0 {
			continue
		}
		for rest := t.list; len(rest) > 0; {
			var b []byte
			b, rest = appendBeats(make([]byte, 0, min(24+10*len(rest), beatsBytesMax+64)), c.id, t.to, rest)
			c.sends = append(c.sends, Message{To: t.to, Data: b})
		}
		t.list, t.due = recycle(t.list), false
	}
}

// beatNow sends the heartbeats of all that is led here, and all answers that wait; the next ones are due some ticks later.
func (c *core) beatNow(ticks int) {
	c.nextBeat = c.ticks + uint64(ticks)
	for _, g := range c.groups {
		if g == nil || g.quiet() {
			continue
		}
		if g.look(); !g.role.leader {
			continue
		}
		g.publishProgress() // before Raft's tick, which may forget who was heard of
		c.settle(g)
		g.rn.Tick()
		g.stale = true
		c.mark(g)
	}
	for i := range c.beats {
		c.beats[i].due = true
	}
}

// keepStep sends this node's heartbeats together with the answers to another's, if they are due soon anyway. The next ones are
// due a tick later than usual: who began a round shall begin the next one, too.
func (c *core) keepStep() {
	if c.cfg.HeartbeatTicks > 1 && c.nextBeat != 0 && c.ticks+1 >= c.nextBeat {
		c.beatNow(c.cfg.HeartbeatTicks + 1)
	}
}

// stepBeats takes a frame of beats.
func (c *core) stepBeats(from uint64, list []beat) {
	told := false
	for i := range list {
		b := &list[i]
		if int(b.shard) >= len(c.groups) || c.groups[b.shard] == nil {
			continue
		}
		if b.kind == beatAnswer {
			c.stepAnswer(c.groups[b.shard], from, b)
			continue
		}
		told = true
		c.stepBeat(c.groups[b.shard], from, b)
	}
	if told {
		c.keepStep()
	}
}

func (c *core) stepBeat(g *group, from uint64, b *beat) {
	if b.kind == beatUrgent {
		c.beatsTo(from).due = true
	}
	if g.look(); g.role.leader || g.role.lead != from || g.role.term != b.term || g.told != g.role || b.commit > g.commit {
		typ := pb.MsgHeartbeat
		c.step(g.shard, &pb.Message{Type: &typ, To: &c.id, From: &from, Term: &b.term, Commit: &b.commit, Index: &b.index})
		return
	}
	c.heardLeader(g, from, max(b.commit, b.index))
	c.addBeat(from, beat{shard: g.shard, kind: beatAnswer, term: b.term})
}

func (c *core) stepAnswer(g *group, from uint64, b *beat) {
	typ := pb.MsgHeartbeatResp
	c.step(g.shard, &pb.Message{Type: &typ, To: &c.id, From: &from, Term: &b.term})
}

// appendBeats encodes as many beats as one frame may have, and returns those that are left.
func appendBeats(b []byte, from, to uint64, list []beat) (_ []byte, rest []beat) {
	b = append(b, beatsMark, beatsVersion)
	b = binary.AppendUvarint(b, from)
	b = binary.AppendUvarint(b, to)
	for i := range list {
		if len(b) >= beatsBytesMax {
			return b, list[i:]
		}
		x := &list[i]
		b = binary.AppendUvarint(b, uint64(x.shard)<<2|uint64(x.kind))
		b = binary.AppendUvarint(b, x.term)
		if x.kind != beatAnswer {
			b = binary.AppendUvarint(b, x.commit)
			b = binary.AppendUvarint(b, x.index-x.commit)
		}
	}
	return b, nil
}

// isBeats tells a frame of beats from a message of Raft's.
func isBeats(data []byte) bool { return len(data) > 0 && data[0] == beatsMark }

// parseBeats reads a frame from a peer for this node.
func parseBeats(cfg *Config, data []byte) (from uint64, list []beat, err error) {
	bad := func(what string) (uint64, []beat, error) {
		return 0, nil, fmt.Errorf("%w: frame of heartbeats, %d bytes: %s", dunlin.ErrInvalid, len(data), what)
	}
	if len(data) < 2 || data[1] != beatsVersion {
		return bad("version")
	}
	rest, ok := data[2:], true
	next := func() (v uint64) {
		var n int
		if v, n = binary.Uvarint(rest); n <= 0 {
			ok, rest = false, nil
			return 0
		}
		rest = rest[n:]
		return v
	}
	from, to := next(), next()
	if !ok || to != cfg.Node || from == cfg.Node || from == raft.None || raft.IsLocalMsgTarget(from) {
		return bad("from whom to whom")
	}
	list = make([]beat, 0, min(len(rest)/2, cfg.Shards)) // an honest one has at most as many, or twice as many
	for len(rest) > 0 {
		head := next()
		b := beat{shard: dunlin.ShardID(head >> 2), kind: beatKind(head & 3), term: next()}
		if b.kind != beatAnswer {
			b.commit = next()
			b.index = b.commit + next()
		}
		if !ok || head>>2 >= uint64(cfg.Shards) || b.kind >= beatKinds || b.term == 0 || b.index < b.commit {
			return bad("a heartbeat")
		}
		list = append(list, b)
	}
	return from, slices.Clip(list), nil
}
