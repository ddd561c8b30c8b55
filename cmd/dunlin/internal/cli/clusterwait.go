package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/spf13/cobra"
)

// order is a command that tells the cluster to do something and then watches it being done.
type order struct {
	remote
	out      output
	noWait   bool
	every    time.Duration
	timeout  time.Duration
	patience time.Duration // how long it goes on watching while nobody answers
}

func (o *order) flags(c *cobra.Command) {
	o.remote.flags(c)
	o.out.flag(c)
	o.patience = 30 * time.Second
	c.Flags().BoolVar(&o.noWait, "no-wait", false, "return once the cluster has taken the order; dunlin cluster status shows the progress")
	c.Flags().DurationVar(&o.every, "every", time.Second, "between looks at the progress")
	c.Flags().DurationVar(&o.timeout, "timeout", 0, "stop watching with exit code 1 after this time; the cluster goes on (0: watch until it is done)")
}

// step is one look at the progress.
type step struct {
	line string // what goes on
	hint string // what keeps it from going on, and what to do; "" if nothing does
	done string // not "": it is over, and this is how it ended
	lost error  // not nil: it will not come about
}

// result is what an order prints with -o json.
type result struct {
	Member string             `json:"member,omitempty"`
	Shard  *dunlin.ShardID    `json:"shard,omitempty"`
	To     string             `json:"to,omitempty"`
	State  dunlin.MemberState `json:"state,omitempty"`
	Done   bool               `json:"done"`
	Detail string             `json:"detail"`
}

// watch looks every now and then until look says that it is done. what is the subject of the sentences, such as "n2 drains";
// undo says how to take it back.
func (o *order) watch(c *cobra.Command, res result, what, undo string, look func(context.Context) (step, error)) error {
	ctx := c.Context()
	if o.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.timeout)
		defer cancel()
	}
	p := &progress{w: c.ErrOrStderr(), inPlace: terminal(c.ErrOrStderr()) && o.env.Getenv("TERM") != "dumb", width: columns(o.env)}
	silentSince := time.Time{}
	for {
		s, err := look(ctx)
		switch {
		case ctx.Err() != nil:
		case s.lost != nil:
			p.end()
			return s.lost
		case err == nil && s.done != "":
			p.end()
			res.Done, res.Detail = true, s.done
			return o.print(c, res)
		case err == nil:
			silentSince = time.Time{}
			p.show(s.line)
			p.tell(s.hint)
		case !transient(err):
			p.end()
			return o.explain(err)
		case silentSince.IsZero():
			silentSince = time.Now()
			p.tell("no answer: " + err.Error() + "; trying again")
		case time.Since(silentSince) > o.patience:
			p.end()
			return fmt.Errorf("%w\n  %s, as far as is known. Ask another member with --server", o.explain(err), what)
		}
		select {
		case <-time.After(o.every):
			continue
		case <-ctx.Done():
		}
		p.end()
		if c.Context().Err() == nil {
			return fmt.Errorf("not done within %s: %s; the cluster goes on with it.\n  `dunlin cluster status` shows how far it is%s", o.timeout, p.last, undo)
		}
		fmt.Fprintf(c.ErrOrStderr(), "dunlin: no longer watching; the cluster goes on: %s. `dunlin cluster status` shows how far it is%s\n", what, undo)
		return errSilent
	}
}

func (o *order) print(c *cobra.Command, res result) error {
	return o.out.print(c, res, func(w io.Writer) { fmt.Fprintln(w, printable(res.Detail)) })
}

// transient errors may be gone with the next look: nobody answered, or the controller is moving.
func transient(err error) bool {
	return !errors.Is(err, dunlin.ErrNotFound) && !errors.Is(err, dunlin.ErrForbidden) && !errors.Is(err, dunlin.ErrUnauthenticated) &&
		!errors.Is(err, dunlin.ErrInvalid) && !errors.Is(err, dunlin.ErrConflict)
}

// progress shows what goes on: in place on a terminal, otherwise a line for each change.
type progress struct {
	w       io.Writer
	inPlace bool
	width   int
	last    string
	told    map[string]bool
	open    bool // the terminal's line is not ended
}

func (p *progress) show(line string) {
	if line == p.last || line == "" {
		return
	}
	p.last = line
	line = printable(line)
	if !p.inPlace {
		fmt.Fprintln(p.w, line)
		return
	}
	fmt.Fprintf(p.w, "\r\x1b[K%s", cut(line, p.width))
	p.open = true
}

// tell says something once, above the line.
func (p *progress) tell(hint string) {
	if hint == "" || p.told[hint] {
		return
	}
	if p.told == nil {
		p.told = map[string]bool{}
	}
	p.told[hint] = true
	p.end()
	fmt.Fprintln(p.w, printable(hint))
	if p.inPlace {
		p.last = "" // show it again below
	}
}

func (p *progress) end() {
	if p.open {
		fmt.Fprintln(p.w)
	}
	p.open = false
}

func columns(env Env) int {
	if n, err := strconv.Atoi(env.Getenv("COLUMNS")); err == nil && n > 20 {
		return n - 1
	}
	return 79
}

// terminal tells whether w is one.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && info.Mode()&os.ModeDevice != 0
}

func newClusterDrain(env Env) *cobra.Command {
	o := order{remote: remote{env: env}}
	c := &cobra.Command{Use: "drain MEMBER", Short: "Have a member give its shards away, to restart or repair it", Args: exactArgs("MEMBER"),
		Long: "drain gives the member's shards other owners, and moves its replicas to members that have none of the shard yet.\n" +
			"It stays a member, and takes shards again after `dunlin cluster undrain`. Where no other member could take a\n" +
			"replica (three members, three replicas) it stays, and the member may be stopped all the same.",
		Example: "  dunlin cluster drain n2 && ssh n2 systemctl restart dunlin && dunlin cluster undrain n2\n  dunlin cluster drain n2 --no-wait",
		RunE: func(c *cobra.Command, args []string) error {
			return o.member(c, args[0], dunlin.MemberDraining)
		}}
	o.flags(c)
	return c
}

func newClusterLeave(env Env) *cobra.Command {
	o := order{remote: remote{env: env}}
	c := &cobra.Command{Use: "leave MEMBER", Short: "Take a member out for good", Args: exactArgs("MEMBER"),
		Long: "leave moves everything off the member and then forgets it. A member that is gone for good may leave, too: its\n" +
			"replicas are made anew from the others. It is refused if the others could not keep as many replicas as there shall be.\n" +
			"To come back, a node joins with an empty data folder.",
		Example: "  dunlin cluster leave n2\n  dunlin cluster leave n2 --server http://n1:8080     ask another member than the one that leaves",
		RunE: func(c *cobra.Command, args []string) error {
			return o.member(c, args[0], dunlin.MemberLeaving)
		}}
	o.flags(c)
	return c
}

func newClusterUndrain(env Env) *cobra.Command {
	r := remote{env: env}
	c := &cobra.Command{Use: "undrain MEMBER", Short: "Take a drain back: the member takes shards again", Args: exactArgs("MEMBER"),
		Example: "  dunlin cluster undrain n2",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := r.admin()
			if err != nil {
				return err
			}
			if err := cl.SetMember(c.Context(), args[0], dunlin.MemberActive); err != nil {
				return r.explainCluster(c.Context(), cl, err, args[0])
			}
			fmt.Fprintf(c.OutOrStdout(), "%s is active: it takes shards again\n", args[0])
			return nil
		}}
	r.flags(c)
	return c
}

// member sets a member's state and watches it getting empty.
func (o *order) member(c *cobra.Command, name string, state dunlin.MemberState) error {
	cl, err := o.admin()
	if err != nil {
		return err
	}
	ctx := c.Context()
	if err := cl.SetMember(ctx, name, state); err != nil {
		return o.explainCluster(ctx, cl, err, name)
	}
	verb, undo := "drains", fmt.Sprintf(", `dunlin cluster undrain %s` takes it back", name)
	if state == dunlin.MemberLeaving {
		verb, undo = "leaves", ""
	}
	res := result{Member: name, State: state, Detail: name + " " + verb}
	if o.noWait {
		return o.print(c, res)
	}
	e := &emptying{order: o, cl: cl, name: name, verb: verb, leaving: state == dunlin.MemberLeaving}
	return o.watch(c, res, name+" "+verb, undo, e.look)
}

// emptying looks how far a member has given away what it has.
type emptying struct {
	*order
	cl      dunlin.ClusterAdmin
	name    string
	verb    string
	leaving bool
	empty   bool // it had nothing left at the last look
	seen    bool // the order was seen to be in force
	early   int  // looks before that: the member that answers may hear of the order after the one that took it
}

// earlyMax looks may not show the order yet.
const earlyMax = 20

func (e *emptying) look(ctx context.Context) (step, error) {
	members, err := e.cl.Members(ctx)
	if err != nil {
		return e.unanswered(err)
	}
	m := memberOf(members, e.name)
	switch {
	case m == nil && e.leaving, m != nil && m.State == dunlin.MemberLeft:
		return step{done: e.name + " has left: it may be stopped, and its data folder deleted"}, nil
	case m == nil:
		return step{lost: fmt.Errorf("%s is no member any more", e.name)}, nil
	case m.State == dunlin.MemberActive && !e.seen && e.early < earlyMax:
		e.early++
	case m.State == dunlin.MemberActive:
		return step{lost: fmt.Errorf("%s is active again: somebody has taken it back", e.name)}, nil
	}
	e.seen = e.seen || m.State != dunlin.MemberActive
	shards, err := e.cl.ShardReplicas(ctx)
	if err != nil {
		return e.unanswered(err)
	}
	h := holdingsOf(shards, members, m.ID)
	e.empty = h.owns == 0 && h.replicas == 0
	s := step{line: fmt.Sprintf("%s %s: it owns %s and has %s%s", e.name, e.verb, count(h.owns, "shard"), count(h.replicas, "replica"), h.moving)}
	switch {
	case !e.seen, h.owns > 0 || h.replicas > h.stuck:
	case h.replicas == 0 && !e.leaving:
		s.done = e.name + " is drained: it owns nothing and keeps nothing, and may be stopped"
	case !e.leaving:
		s.done = fmt.Sprintf("%s is drained: it owns nothing, and may be stopped. It keeps %s that no other member can take: while it is down, "+
			"those shards have one less", e.name, count(h.replicas, "replica"))
	case h.replicas > 0:
		s.hint = fmt.Sprintf("no other member can take what %s has left (%s): add a member, and it goes on", e.name, count(h.replicas, "replica"))
	}
	return s, nil
}

// unanswered is for an answer that did not come: of a member that leaves it may be the last sign.
func (e *emptying) unanswered(err error) (step, error) {
	if e.leaving && e.empty && transient(err) {
		return step{done: fmt.Sprintf("%s had given everything away when %s stopped answering; `dunlin cluster members` on another member tells whether it is gone",
			e.name, e.address())}, nil
	}
	return step{}, err
}

func memberOf(members []dunlin.Member, name string) *dunlin.Member {
	for i := range members {
		if members[i].Name == name || members[i].ID.String() == name {
			return &members[i]
		}
	}
	return nil
}

// holdings is what a member has yet. Every member keeps a replica of the meta shard, which therefore does not count.
type holdings struct {
	owns, replicas int
	stuck          int // replicas that nobody could take
	moving         string
}

func holdingsOf(shards []dunlin.ShardReplicas, members []dunlin.Member, id dunlin.NodeID) (h holdings) {
	moving := 0
	for i := range shards {
		s := &shards[i]
		if s.Owner == id {
			h.owns++
		}
		if s.Shard == dunlin.MetaShard || !holds(s, id.String()) {
			continue
		}
		h.replicas++
		switch {
		case s.Moving != "":
			if moving++; moving == 1 {
				h.moving = fmt.Sprintf("; shard %d: %s", s.Shard, s.Moving)
			}
		case s.Owner != 0 && !takeable(s, members):
			h.stuck++
		}
	}
	if moving > 1 {
		h.moving += fmt.Sprintf(", and %d more on their way", moving-1)
	}
	return h
}

// takeable tells whether a member could be given another replica of the shard.
func takeable(s *dunlin.ShardReplicas, members []dunlin.Member) bool {
	for i := range members {
		if m := &members[i]; m.Alive && m.State == dunlin.MemberActive && !holds(s, m.ID.String()) {
			return true
		}
	}
	return false
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

func newClusterMove(env Env) *cobra.Command {
	o, from, to := order{remote: remote{env: env}}, "", ""
	c := &cobra.Command{Use: "move SHARD --to MEMBER [--from MEMBER]", Short: "Move a shard's replica to another member, or make a member its owner", Args: exactArgs("SHARD"),
		Long: "move has a member without a replica of the shard get one, in the place of the one on --from. A member that has\n" +
			"one becomes the shard's owner instead; then --from is not needed. The cluster balances itself: moving by hand is\n" +
			"for a shard that is hotter than others, and the controller may move others in return.",
		Example: "  dunlin cluster move 12 --from n1 --to n4\n  dunlin cluster move 12 --to n2              n2 has a replica: it becomes the owner",
		RunE: func(c *cobra.Command, args []string) error {
			sh, err := strconv.ParseUint(strings.TrimSpace(args[0]), 10, 16)
			switch {
			case err != nil:
				return usageError{c.CommandPath(), fmt.Sprintf("%q is not the number of a shard; `dunlin cluster shards` lists them", args[0])}
			case to == "":
				return usageError{c.CommandPath(), "say who gets it with --to"}
			}
			return o.move(c, dunlin.ShardID(sh), from, to)
		}}
	o.flags(c)
	c.Flags().StringVar(&from, "from", "", "the member that gives its replica up")
	c.Flags().StringVar(&to, "to", "", "the member that gets it")
	return c
}

func (o *order) move(c *cobra.Command, sh dunlin.ShardID, from, to string) error {
	cl, err := o.admin()
	if err != nil {
		return err
	}
	ctx := c.Context()
	before, err := shardOf(ctx, cl, sh)
	if err != nil {
		return o.explainCluster(ctx, cl, err)
	}
	owner := holds(before, to)
	if from == "" && !owner {
		if err := o.explainCluster(ctx, cl, dunlin.ErrNotFound, to); !errors.Is(err, dunlin.ErrNotFound) { // there is no such member
			return err
		}
		return fmt.Errorf("%s has no replica of shard %d, so say with --from whose it is to take the place of; they are on %s", to, sh, replicasOf(before))
	}
	if err := cl.MoveReplica(ctx, sh, from, to); err != nil {
		return o.explainCluster(ctx, cl, err, from, to)
	}
	what := fmt.Sprintf("shard %d moves from %s to %s", sh, from, to)
	if owner {
		what = fmt.Sprintf("shard %d gets %s as its owner", sh, to)
	}
	res := result{Shard: &sh, To: to, Detail: what}
	if o.noWait {
		return o.print(c, res)
	}
	return o.watch(c, res, what, "", func(ctx context.Context) (step, error) {
		s, err := shardOf(ctx, cl, sh)
		if err != nil {
			return step{}, err
		}
		line := what + ": " + s.Moving
		if s.Moving == "" {
			line = what + ": waiting for its turn"
		}
		switch {
		case owner && ownerIs(s, to):
			return step{done: fmt.Sprintf("%s owns shard %d", to, sh)}, nil
		case !owner && votes(s, to) && !holds(s, from):
			return step{done: fmt.Sprintf("shard %d is on %s; its replicas are on %s", sh, to, replicasOf(s))}, nil
		}
		return step{line: line}, nil
	})
}

func shardOf(ctx context.Context, cl dunlin.ClusterAdmin, sh dunlin.ShardID) (*dunlin.ShardReplicas, error) {
	shards, err := cl.ShardReplicas(ctx)
	if err != nil {
		return nil, err
	}
	for i := range shards {
		if shards[i].Shard == sh {
			return &shards[i], nil
		}
	}
	return nil, fmt.Errorf("there is no shard %d; the last one is %d", sh, len(shards)-1)
}

func ownerIs(s *dunlin.ShardReplicas, member string) bool {
	for _, rep := range s.Replicas {
		if rep.Node == s.Owner && s.Owner != 0 && (rep.Name == member || rep.Node.String() == member) {
			return true
		}
	}
	return false
}

func votes(s *dunlin.ShardReplicas, member string) bool {
	for _, rep := range s.Replicas {
		if (rep.Name == member || rep.Node.String() == member) && rep.Role == dunlin.RoleVoter {
			return true
		}
	}
	return false
}
