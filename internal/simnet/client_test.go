package simnet

import (
	"fmt"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/shard"
)

// client is a device: it sends its uplinks one after the other, each again and again until it is answered, to any node, and
// remembers what it was told.
type client struct {
	w      *world
	number int
	key    dunlin.DeviceKey
	shard  dunlin.ShardID
	sent   int     // the number of the last message
	out    *letter // not answered yet
	over   bool    // it sends nothing new

	acked []uint64 // message ids
	seq   uint64   // the largest number that it was told
}

// letter is a message on its way, however often it is sent.
type letter struct {
	c     *client
	id    uint64
	n     int
	at    dunlin.Time
	tries int
}

func (w *world) addClient(i int) {
	c := &client{w: w, number: i, key: dunlin.DeviceKey{Tenant: dunlin.DefaultTenant, Device: dunlin.DeviceID(fmt.Sprintf("d%d", i))}}
	c.shard = shard.Of(c.key, w.shards)
	w.clients = append(w.clients, c)
	w.after(w.between(0, w.pace), c.next)
}

// next sends the next uplink.
func (c *client) next() {
	if c.over || c.out != nil {
		return
	}
	c.sent++
	c.out = &letter{c: c, id: uint64(c.number+1)<<32 | uint64(c.sent), n: c.sent, at: c.w.now}
	c.send(c.out)
}

// send sends a letter once more.
func (c *client) send(l *letter) {
	if c.out != l {
		return
	}
	w := c.w
	l.tries++
	if l.tries > 8 && !w.healed { // its fate is open; on with the next
		c.out = nil
		w.after(c.w.between(0, w.pace), c.next)
		return
	}
	if up := w.living(); len(up) > 0 {
		n, again := up[w.rng.IntN(len(up))], l.tries > 1
		w.send(0, n.id, func() {
			if n.up {
				n.receive(l.uplink(n, again), 0)
			}
		})
	}
	try := l.tries
	w.after(w.between(150*time.Millisecond, 250*time.Millisecond)*time.Duration(min(try, 6)), func() {
		if l.tries == try {
			c.send(l)
		}
	})
}

// uplink is what the gateway of a node makes of the letter.
func (l *letter) uplink(n *node, again bool) *dunlin.Uplink {
	u := &dunlin.Uplink{DeviceKey: l.c.key, Sender: dunlin.Principal{Kind: dunlin.PrincipalDevice, Tenant: l.c.key.Tenant, ID: string(l.c.key.Device)}}
	u.Input = dunlin.Input{Kind: dunlin.InputTelemetry, Format: dunlin.FormatSenMLJSON, MessageID: l.id, Received: n.wall(), Flags: dunlin.FlagExchange,
		Records: []dunlin.Record{{Metric: "v", Kind: dunlin.Number, Num: float64(l.n), Time: l.at}}}
	if again {
		u.Flags |= dunlin.FlagMayRepeat
	}
	u.Flags |= dunlin.FlagMayRepeat // a network may repeat the first one, too
	u.Waiter = &waiter{l, n}
	return u
}

// waiter carries an answer back.
type waiter struct {
	l *letter
	n *node
}

// Done implements dunlin.Waiter.
func (x *waiter) Done(_ *dunlin.Uplink, r dunlin.Receipt) {
	if r.Err == nil && x.l.c.w.err == nil {
		x.l.c.w.truth.promised(x.l, r)
	}
	x.n.w.send(x.n.id, 0, func() { x.l.c.answer(x.l, r) })
}

// receive routes an uplink: to the owner here, or where one is said to be.
func (n *node) receive(u *dunlin.Uplink, hops int) {
	sh := shard.Of(u.DeviceKey, n.w.shards)
	if o := n.owners[sh]; o != nil {
		o.accept(u)
		return
	}
	to := n.w.node(n.hint(sh))
	if to == nil || to == n || hops > 1 {
		u.Waiter.Done(u, dunlin.Receipt{Err: dunlin.ErrNotOwner, RetryAfterSeconds: 1})
		return
	}
	n.w.send(n.id, to.id, func() {
		if to.up {
			again := *u // the network may deliver it twice
			to.receive(&again, hops+1)
		}
	})
}

// hint is who may own a shard.
func (n *node) hint(sh dunlin.ShardID) dunlin.NodeID {
	if st := n.m.Status(sh); st.Present && st.Lead != 0 {
		return st.Lead
	}
	if row, ok := n.placement(sh); ok {
		return row.Voters[n.w.rng.IntN(len(row.Voters))]
	}
	return 0
}

// answer is what the client hears.
func (c *client) answer(l *letter, r dunlin.Receipt) {
	w := c.w
	if c.out != l {
		return
	}
	if r.Err != nil {
		try := l.tries
		w.after(w.between(50*time.Millisecond, 200*time.Millisecond), func() {
			if l.tries == try {
				c.send(l)
			}
		})
		return
	}
	c.out = nil
	c.acked = append(c.acked, l.id)
	c.seq = max(c.seq, r.Seq)
	w.stats.acked++
	w.mark(l.id, r.Seq)
	if w.chance(15) {
		c.read()
	}
	w.after(w.between(w.pace/2, w.pace*3/2), c.next)
}

// read asks any replica for the device. It must know all that the client has been told of.
func (c *client) read() {
	w := c.w
	up := w.living()
	if len(up) == 0 {
		return
	}
	n, seq := up[w.rng.IntN(len(up))], c.seq
	if !n.m.Status(c.shard).Present {
		return
	}
	run := n.run
	look := func(err error) {
		if err != nil || !n.up || n.run != run {
			return
		}
		w.stats.reads++
		st, known, err := n.db.State().LoadDevice(c.shard, c.key)
		if err != nil || !known || st.Version < seq {
			w.fail("a read of %s on %s finds version %d (%t, %v), after %d was acknowledged", c.key.Device, n, version(st), known, err, seq)
		}
	}
	if w.planted == staleReads {
		look(nil)
		return
	}
	n.m.ReadIndex(c.shard, look)
	n.poke()
}

func version(st *dunlin.DeviceState) uint64 {
	if st == nil {
		return 0
	}
	return st.Version
}
