package replica

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dunlin-iot/dunlin"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

// Raft's own clock runs in leaders only: it sends heartbeats and counts who answers. When to stand for election is decided
// here, because Raft draws its timeouts from a source that no seed can tame, and because a timeout says "the leader is gone"
// only where this node was there to hear it:
//
//   - what came in before a tick is worked off before the tick is counted, and a loop that was held up counts one tick, however
//     long it took;
//   - how late ticks were, and how long leaders that were alive kept silent, is remembered for some seconds as slack, which puts
//     elections off. On a busy machine failover takes up to two election timeouts longer; on an idle one slack is 0.
//
// A follower that has not heard of its leader for an election timeout forgets it, and from then on grants its vote. After its
// own timeout, of once to twice that, it campaigns.

// slackUnit is one tick in core.slack, which loses one unit a tick.
const slackUnit = 16

// at says what time it is. It must not run backwards.
func (c *core) at(now dunlin.Time) { c.now = max(c.now, now) }

// tick tells that a tick passed. Two in a row, after the caller was held up, are one.
func (c *core) tick() { c.tickAfter(1) }

// tickAfter tells that n ticks passed, as many as nap said or fewer.
func (c *core) tickAfter(n int) {
	every := c.every()
	if c.lastTick != 0 && c.now != 0 {
		since := c.now - c.lastTick
		if since < dunlin.Time(n)*every-every/2 {
			return
		}
		if late := since/every - dunlin.Time(n); late > 0 {
			c.excuse(int(min(late, dunlin.Time(c.cfg.ElectionTicks))))
		}
	}
	c.passed(n - 1)
	if next := c.lastTick + dunlin.Time(n)*every; c.lastTick != 0 && c.now >= next && c.now < next+every {
		c.lastTick = next // a little late is no reason to be later with all that follow
	} else {
		c.lastTick = c.now
	}
	c.ticks++
	c.slack, c.stirred = max(c.slack-1, 0), false
	if c.writtenSeq+1 < c.appendSeq && c.ticks-c.writingSince == stallTicks+1 {
		c.cfg.Logger.Warn("log is not written: shards are left to others", "ticks", stallTicks)
	}
	if c.ticks >= c.nextBeat {
		c.beatNow(c.cfg.HeartbeatTicks)
	}
	for _, g := range c.groups {
		if g == nil || g.quiet() {
			continue
		}
		if g.look(); g.role.leader {
			c.tickLeader(g)
		} else {
			c.tickFollower(g)
		}
		c.tickReads(g)
		c.tickExport(g)
	}
}

func (c *core) every() dunlin.Time { return dunlin.Time(c.cfg.TickEvery / time.Microsecond) }

// nap returns after how many ticks the next one is that does anything, if nothing comes in before. Who comes back earlier, for
// whatever came in, tells pass first.
func (c *core) nap() int {
	if c.stirred || c.abdicating || c.lastTick == 0 || c.now == 0 || c.ticks >= c.nextBeat || c.writtenSeq+1 < c.appendSeq || len(c.leaving) > 0 {
		return 1
	}
	n := int(c.nextBeat - c.ticks)
	for _, g := range c.groups {
		if g == nil || g.quiet() {
			continue
		}
		if g.look(); g.transfer != nil || g.change != nil || g.fetch != nil || len(g.sent) > 0 || len(g.reads.asked) > 0 || len(g.reads.next) > 0 {
			return 1
		}
		if !g.role.leader {
			n = min(n, c.cfg.ElectionTicks-g.elapsed, g.timeout-g.elapsed)
		}
	}
	return max(n, 1)
}

// pass counts the whole ticks since the last one, at most so many, in which nothing was due: nap said so. It must come before
// what came in after them is fed.
func (c *core) pass(most int) (n int) {
	if c.lastTick == 0 {
		return 0
	}
	n = min(int(max(c.now-c.lastTick, 0)/c.every()), most)
	if n <= 0 {
		return 0
	}
	c.lastTick += dunlin.Time(n) * c.every()
	c.passed(n)
	return n
}

func (c *core) passed(n int) {
	if n <= 0 {
		return
	}
	c.ticks += uint64(n)
	c.slack = max(c.slack-n, 0)
	for _, g := range c.groups {
		if g == nil || g.quiet() {
			continue
		}
		if g.look(); !g.role.leader {
			g.elapsed += n
		}
	}
}

// stallTicks is how long a write to the log may take before the groups led here go to replicas that have all of them: what is
// proposed here is not acknowledged meanwhile, however well the others do. Two seconds; a disk that all share gains nothing by it.
const stallTicks = 66

// stalled reports that the log does not get on.
func (c *core) stalled() bool {
	return c.writtenSeq+1 < c.appendSeq && c.ticks-c.writingSince > stallTicks
}

// excuse puts elections off by so many ticks more than now, up to two election timeouts.
func (c *core) excuse(ticks int) {
	c.slack = min(c.slack+ticks*slackUnit, 2*c.cfg.ElectionTicks*slackUnit)
}

func (c *core) tickLeader(g *group) {
	c.tickSent(g)
	c.tickTransfer(g)
	switch {
	case c.abdicating:
		c.giveAway(g)
	case c.stalled():
		if to, has := c.heir(g); has >= g.last && to != raft.None && g.transfer == nil {
			c.hand(g, to)
		}
	}
}

func (c *core) tickFollower(g *group) {
	c.tickFetch(g)
	g.elapsed++
	patience := g.elapsed - c.slack/slackUnit
	if patience >= c.cfg.ElectionTicks && g.role.lead != raft.None {
		g.stale = true
		c.touch(g)
		_ = g.rn.ForgetLeader() // an error is for those who read by leases
	}
	if patience >= g.timeout {
		c.rest(g)
		c.stand(g)
	}
	c.tickTransfer(g)
}

// rest begins an election timeout.
func (c *core) rest(g *group) {
	g.elapsed, g.timeout = 0, c.cfg.ElectionTicks+c.rng.IntN(c.cfg.ElectionTicks)
}

// stand campaigns, if the replica may be elected at all.
func (c *core) stand(g *group) {
	if g.mute() || g.installing || (c.abdicating || c.stalled()) && !g.alone {
		return
	}
	g.stale = true
	c.touch(g)
	// Raft refuses, and logs, where this node is no voter or has not applied a change of the replica set.
	_ = g.rn.Campaign()
}

// campaign lets the only voter of a group elect itself at once: there is nobody whose leadership the election timeout
// would have to outlast. Raft refuses while a committed membership change is not applied; applied asks again.
func (c *core) campaign(g *group) {
	if g.look(); !g.alone || g.role.leader {
		return
	}
	s := g.rn.BasicStatus()
	if s.RaftState != raft.StateFollower || s.Applied < s.GetCommit() || g.installing {
		return
	}
	g.stale = true
	if s.Lead != raft.None { // one that has left the replica set
		_ = g.rn.ForgetLeader()
	}
	if err := g.rn.Campaign(); err != nil {
		panic(fmt.Sprintf("replica: shard %d: campaign of a lone voter: %v", g.shard, err))
	}
	c.touch(g)
}

// ticking reports whether any group needs ticks.
func (c *core) ticking() bool {
	for _, g := range c.groups {
		if g != nil && !g.quiet() {
			return true
		}
	}
	return false
}

var errMessage = errors.New("no message for a replica")

// checkMessage refuses what no replica sends, and what would make Raft fall over.
func checkMessage(m *pb.Message) error {
	bad := false
	switch m.GetType() {
	case pb.MsgApp:
		at, term := m.GetIndex(), m.GetLogTerm()
		for _, e := range m.Entries {
			at++
			bad = bad || e.GetIndex() != at || e.GetTerm() < term || e.GetTerm() > m.GetTerm() ||
				e.GetType() < pb.EntryNormal || e.GetType() > pb.EntryConfChangeV2
			term = e.GetTerm()
		}
	case pb.MsgReadIndex, pb.MsgReadIndexResp:
		bad = len(m.Entries) != 1
	case pb.MsgHeartbeatResp:
		bad = len(m.Context) != 0 && len(m.Context) != 8
	case pb.MsgSnap:
		bad = m.GetSnapshot() == nil
	case pb.MsgAppResp, pb.MsgVote, pb.MsgVoteResp, pb.MsgHeartbeat, pb.MsgTimeoutNow, pb.MsgPreVote, pb.MsgPreVoteResp, pb.MsgSnapStatus:
	default: // above all MsgProp: only owners propose, and only at home: group.place counts on it
		bad = true
	}
	if bad || m.GetTerm() == 0 && m.GetType() != pb.MsgReadIndex {
		return fmt.Errorf("%w: %s", errMessage, m.GetType())
	}
	return nil
}

// step takes a message from a peer that checkMessage has let pass.
func (c *core) step(sh dunlin.ShardID, m *pb.Message) {
	g := c.groups[sh]
	if g == nil {
		return
	}
	switch m.GetType() {
	case pb.MsgSnap:
		c.offered(g, m)
		return
	case pb.MsgSnapStatus:
		c.snapStatus(g, m)
		return
	case pb.MsgVote, pb.MsgPreVote:
		if g.mute() {
			return
		}
	case pb.MsgTimeoutNow:
		if g.mute() || c.abdicating || c.stalled() || g.installing {
			return
		}
	case pb.MsgReadIndex:
		// Raft answers for a lone voter what is committed as far as it knows, which after a restart may be less than was
		// acknowledged; and whoever leads no more would send the question on, back to where it came from in the end.
		if !g.owner() {
			return
		}
	case pb.MsgHeartbeat:
		// It may be meant for the replica that was here before. Raft would take it for the loss of its log.
		if (g.floor > 0 || len(g.conf.Voters) == 0) && m.GetCommit() > g.last {
			m.Commit = &g.last
		}
	}
	c.settle(g)
	g.stale = true
	if m.GetType() == pb.MsgHeartbeatResp {
		c.mark(g)
	} else {
		c.touch(g)
	}
	// Raft says which messages it drops and why; none of it is for us: a peer's loss is its own retry.
	_ = g.rn.Step(m)
	if m.GetTerm() == g.told.term {
		c.heard(g, m)
	}
}

// heard notes signs of life: of the leader, and of those who answer it.
func (c *core) heard(g *group, m *pb.Message) {
	switch m.GetType() {
	case pb.MsgApp:
		c.heardLeader(g, m.GetFrom(), m.GetCommit())
	case pb.MsgHeartbeat:
		c.heardLeader(g, m.GetFrom(), max(m.GetCommit(), m.GetIndex()))
	case pb.MsgAppResp, pb.MsgHeartbeatResp, pb.MsgReadIndex, pb.MsgSnapStatus:
		if p := g.peer(m.GetFrom()); p != nil && g.told.leader {
			p.tick, p.heard = c.ticks, c.now
			c.fresh(g)
		}
	}
}

// heardLeader notes that the leader lives, and what it says is committed.
func (c *core) heardLeader(g *group, from, commit uint64) {
	if from != g.told.lead {
		return
	}
	if over := g.elapsed - 2*c.cfg.HeartbeatTicks; over > c.slack/slackUnit {
		c.excuse(over - c.slack/slackUnit) // so long it kept silent, and was not gone
	}
	g.elapsed = 0
	g.fresher.tell(commit, c.now, g.applied)
	g.cell.fresh.Store(int64(g.fresher.at))
}

// freshness is how a replica knows since when it has all that was committed then.
type freshness struct {
	at     dunlin.Time // it had all that was committed then; 0: unknown
	want   uint64      // what it must have applied
	wantAt dunlin.Time // to be as fresh as then; 0: nothing
}

// tell takes a leader's word of what is committed.
func (f *freshness) tell(commit uint64, now dunlin.Time, applied uint64) {
	if applied >= commit {
		f.at, f.wantAt = now, 0
		return
	}
	if f.wantAt == 0 { // the oldest word that is not fulfilled: a newer one may never be
		f.want, f.wantAt = commit, now
	}
}

// fresh finds out how fresh the group is now.
func (c *core) fresh(g *group) {
	f := &g.fresher
	if g.told.leader {
		f.wantAt = 0
		if at := c.majority(g); g.announced == g.told.term && at > f.at {
			f.at = at
		}
	} else if f.wantAt != 0 && g.applied >= f.want {
		f.at, f.wantAt = max(f.at, f.wantAt), 0
	}
	g.cell.fresh.Store(int64(f.at))
}

// majority returns since when a majority of the voters, or of both sets of them, has answered this leader.
func (c *core) majority(g *group) dunlin.Time {
	at := c.now
	for _, set := range [2][]uint64{g.conf.Voters, g.conf.VotersOutgoing} {
		if len(set) == 0 {
			continue
		}
		var room [8]dunlin.Time
		heard := room[:0]
		for _, id := range set {
			if p := g.peer(id); id == c.id {
				heard = append(heard, c.now)
			} else if p != nil {
				heard = append(heard, p.heard)
			}
		}
		slices.Sort(heard)
		if n := len(set)/2 + 1; len(heard) >= n {
			at = min(at, heard[len(heard)-n])
		}
	}
	return at
}

// moved follows a change of leader or term.
func (c *core) moved(g *group, was role) {
	if g.told.lead != raft.None || g.told.term != was.term {
		c.rest(g)
	}
	if g.told.leader && !was.leader {
		for i := range g.peers { // they have just voted, or had the chance to
			g.peers[i].tick = c.ticks
		}
	}
	if !g.told.leader {
		g.sent = g.sent[:0]
	}
	if g.told.lead != g.led.lead || g.told.lead != raft.None && g.told.term != g.led.term {
		g.led = g.told
		c.events = append(c.events, event{shard: g.shard, term: g.told.term, leader: true, lead: g.told.lead})
	}
	c.moveTransfer(g)
	c.moveReads(g)
	c.moveFetch(g)
}
