package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/httpapi"
)

// scripted is a cluster that is in the next state of its script whenever it is asked for its shards.
type scripted struct {
	sync.Mutex
	status  dunlin.ClusterStatus
	members []dunlin.Member
	shards  []dunlin.ShardReplicas
	steps   [][]string // lines of the states to come
	refuse  error
	asked   func()              // called when it is asked for its shards
	hashes  map[string][]string // of "shard/member": INDEX:HASH, an answer each, the last one for good
}

func (s *scripted) ClusterStatus(context.Context) (*dunlin.ClusterStatus, error) {
	s.Lock()
	defer s.Unlock()
	st := s.status
	st.Shards, st.Members, st.Alive, st.Owned, st.Full = len(s.shards), len(s.members), 0, 0, 0
	for i := range s.members {
		if s.members[i].Alive {
			st.Alive++
		}
	}
	for i := range s.shards {
		sh := &s.shards[i]
		if sh.Owner != 0 {
			st.Owned++
		}
		if !slices.ContainsFunc(sh.Replicas, func(r dunlin.Replica) bool { return !s.find(r.Name).Alive }) {
			st.Full++
		}
	}
	st.Healthy = st.Owned == st.Shards && st.Full == st.Shards
	return &st, s.refuse
}

func (s *scripted) Members(context.Context) ([]dunlin.Member, error) {
	s.Lock()
	defer s.Unlock()
	for i := range s.members {
		m := &s.members[i]
		m.Leads, m.Replicas = 0, 0
		for k := range s.shards {
			if s.shards[k].Owner == m.ID {
				m.Leads++
			}
			if holds(&s.shards[k], m.Name) {
				m.Replicas++
			}
		}
	}
	return slices.Clone(s.members), s.refuse
}

func (s *scripted) ShardReplicas(context.Context) ([]dunlin.ShardReplicas, error) {
	s.Lock()
	defer s.Unlock()
	if len(s.steps) > 0 {
		for _, line := range s.steps[0] {
			s.set(line)
		}
		s.steps = s.steps[1:]
	}
	if s.asked != nil {
		s.asked()
	}
	return slices.Clone(s.shards), s.refuse
}

func (s *scripted) OwnReplicas(context.Context) (*dunlin.NodeReplicas, error) {
	return nil, fmt.Errorf("%w: nobody asks for this here", dunlin.ErrUnavailable)
}

func (s *scripted) ShardHash(_ context.Context, sh dunlin.ShardID, member string) (*dunlin.ShardHash, error) {
	s.Lock()
	defer s.Unlock()
	i := slices.IndexFunc(s.members, func(m dunlin.Member) bool { return m.Name == member || m.ID.String() == member })
	if i < 0 {
		return nil, fmt.Errorf("member %q: %w", member, dunlin.ErrNotFound)
	}
	h := &dunlin.ShardHash{Shard: sh, Node: s.members[i].ID, Name: s.members[i].Name, Applied: 1200, Hash: "3f9a77c2aa"}
	key := fmt.Sprintf("%d/%s", sh, h.Name)
	if list := s.hashes[key]; len(list) > 0 {
		index, sum, _ := strings.Cut(list[0], ":")
		if len(list) > 1 {
			s.hashes[key] = list[1:]
		}
		if sum == "" {
			return nil, fmt.Errorf("%w: %s", dunlin.ErrUnavailable, index)
		}
		h.Applied, _ = strconv.ParseUint(index, 10, 64)
		h.Hash = sum
	}
	return h, nil
}

func (s *scripted) SetMember(_ context.Context, name string, state dunlin.MemberState) error {
	s.Lock()
	defer s.Unlock()
	m := s.find(name)
	switch {
	case s.refuse != nil:
		return s.refuse
	case m.ID == 0:
		return fmt.Errorf("member %q: %w", name, dunlin.ErrNotFound)
	case state == dunlin.MemberLeaving && len(s.members) <= 3:
		return fmt.Errorf("%w: shards have 3 replicas, and without %s only 2 living members could take them; add a member first", dunlin.ErrConflict, name)
	}
	m.State = state
	return nil
}

func (s *scripted) MoveReplica(_ context.Context, shard dunlin.ShardID, _, to string) error {
	s.Lock()
	defer s.Unlock()
	if s.find(to).ID == 0 {
		return fmt.Errorf("member %q: %w", to, dunlin.ErrNotFound)
	}
	return s.refuse
}

func (s *scripted) find(name string) *dunlin.Member {
	for i := range s.members {
		if s.members[i].Name == name {
			return &s.members[i]
		}
	}
	return &dunlin.Member{}
}

// set changes one thing:
//
//	member NAME [state=S] [zone=Z] [down=SPAN] [gone]
//	shard N [owner=NAME] [on=NAME,NAME:BEHIND,…] [learner=NAME:BEHIND] [silent=NAME] [moving=WORDS_WITH_UNDERSCORES] [missing=WORDS]
//	hash N NAME INDEX:HASH|REFUSAL …
//	moves WORDS, problem WORDS, refuse WORD
func (s *scripted) set(line string) {
	f := strings.Fields(line)
	if len(f) < 2 {
		panic(line)
	}
	words := strings.Join(f[1:], " ")
	switch f[0] {
	case "moves":
		s.status.Moves = append(s.status.Moves, words)
	case "problem":
		s.status.Problems = append(s.status.Problems, words)
	case "refuse":
		s.refuse = map[string]error{"unavailable": dunlin.ErrUnavailable, "forbidden": dunlin.ErrForbidden, "not-found": dunlin.ErrNotFound, "nothing": nil}[f[1]]
	case "hash":
		if s.hashes == nil {
			s.hashes = map[string][]string{}
		}
		s.hashes[f[1]+"/"+f[2]] = f[3:]
	case "member":
		s.setMember(f[1], f[2:])
	case "shard":
		n, err := strconv.Atoi(f[1])
		if err != nil {
			panic(line)
		}
		for len(s.shards) <= n {
			s.shards = append(s.shards, dunlin.ShardReplicas{Shard: dunlin.ShardID(len(s.shards)), Term: 3, Commit: 1200, Bytes: 5 << 20})
		}
		s.setShard(&s.shards[n], f[2:])
	default:
		panic(line)
	}
}

func (s *scripted) setMember(name string, args []string) {
	m := s.find(name)
	if m.ID == 0 {
		id := dunlin.NodeID(len(s.members) + 1)
		s.members = append(s.members, dunlin.Member{ID: id, Name: name, State: dunlin.MemberActive, Alive: true, Peer: fmt.Sprintf("10.0.0.%d:7947", id),
			HTTP: fmt.Sprintf("10.0.0.%d:8080", id), Version: "v0.5.0", DiskUsed: 1 << 30 * int64(id), DiskFree: 40 << 30})
		m = &s.members[len(s.members)-1]
	}
	for _, a := range args {
		k, v, _ := strings.Cut(a, "=")
		switch k {
		case "state":
			m.State = dunlin.MemberState(v)
		case "zone":
			m.Zone = v
		case "down":
			d, err := time.ParseDuration(v)
			if err != nil {
				panic(a)
			}
			m.Alive, m.DownFor = d == 0, dunlin.Duration(d)
		case "gone":
			s.members = slices.DeleteFunc(s.members, func(o dunlin.Member) bool { return o.Name == name })
		}
	}
}

func (s *scripted) setShard(sh *dunlin.ShardReplicas, args []string) {
	replica := func(text string, role dunlin.ReplicaRole) dunlin.Replica {
		name, behind, _ := strings.Cut(text, ":")
		n, _ := strconv.ParseUint(behind, 10, 64)
		return dunlin.Replica{Node: s.find(name).ID, Name: name, Role: role, Match: sh.Commit - n, Behind: n, Active: true}
	}
	for _, a := range args {
		k, v, _ := strings.Cut(a, "=")
		switch k {
		case "owner":
			sh.Owner = s.find(v).ID
		case "on":
			sh.Replicas = nil
			for text := range strings.SplitSeq(v, ",") {
				sh.Replicas = append(sh.Replicas, replica(text, dunlin.RoleVoter))
			}
		case "learner":
			sh.Replicas = slices.DeleteFunc(sh.Replicas, func(r dunlin.Replica) bool { return r.Role == dunlin.RoleLearner })
			sh.Replicas = append(sh.Replicas, replica(v, dunlin.RoleLearner))
		case "silent":
			for i := range sh.Replicas {
				sh.Replicas[i].Active = sh.Replicas[i].Name != v
			}
		case "moving":
			sh.Moving = strings.ReplaceAll(v, "_", " ")
		case "missing":
			sh.Missing = strings.ReplaceAll(v, "_", " ")
		}
	}
}

type openAuth struct{}

func (openAuth) Authenticate(context.Context, dunlin.LoginAttempt) (dunlin.Principal, error) {
	return dunlin.Principal{Kind: dunlin.PrincipalOpen, Tenant: dunlin.DefaultTenant}, nil
}

type noDecoder struct{ httpapi.Decoder }

// serveCluster serves a cluster by the real HTTP door.
func serveCluster(t *testing.T, admin dunlin.ClusterAdmin) string {
	g, err := httpapi.New(httpapi.Config{}, httpapi.Deps{Ingestor: struct{ dunlin.Ingestor }{}, Inspector: struct{ dunlin.Inspector }{},
		Registrar: struct{ dunlin.Registrar }{}, Auth: openAuth{}, Feed: struct{ dunlin.Feed }{}, Decoder: noDecoder{}, Cluster: admin})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(g)
	t.Cleanup(srv.Close)
	return srv.URL
}

// command runs one command line against a server.
func command(ctx context.Context, server string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	env := Env{Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, Getenv: func(k string) string {
		if k == "DUNLIN_SERVER" {
			return server
		}
		return ""
	}}
	code = Run(ctx, args, env)
	return code, out.String(), strings.ReplaceAll(errs.String(), server, "http://SERVER")
}

func TestClusterCommands(t *testing.T) {
	var s *scripted
	server := ""
	datadriven.RunTest(t, "testdata/cluster.txt", func(t *testing.T, d *datadriven.TestData) string {
		switch d.Cmd {
		case "cluster":
			s = &scripted{status: dunlin.ClusterStatus{Cluster: "7f3a9c21d0e4b586", Node: 1, Name: "n1", Controller: 2, Replication: 3, Entries: 1}}
			for line := range strings.Lines(d.Input) {
				s.set(line)
			}
			server = serveCluster(t, s)
			return ""
		case "then":
			s.Lock()
			defer s.Unlock()
			s.steps = nil
			for text := range strings.SplitSeq(d.Input, "next\n") {
				s.steps = append(s.steps, strings.Split(strings.TrimSpace(text), "\n"))
			}
			return ""
		case "run":
			args := strings.Fields(d.Input)
			if slices.Contains([]string{"drain", "leave", "move"}, args[1]) && !slices.Contains(args, "--help") {
				args = append(args, "--every", "1ms")
			}
			code, stdout, stderr := command(t.Context(), server, args...)
			out := fmt.Sprintf("exit %d\n%s", code, stdout)
			if stderr != "" {
				out += "-- stderr\n" + stderr
			}
			return out
		}
		d.Fatalf(t, "unknown command %s", d.Cmd)
		return ""
	})
}

// Who stops watching does not stop the cluster, and is told so.
func TestWatchingEndsWithoutEndingTheOrder(t *testing.T) {
	s := &scripted{}
	for _, line := range []string{"member n1", "member n2", "member n3", "shard 0 owner=n1 on=n1,n2,n3", "shard 1 owner=n2 on=n1,n2"} {
		s.set(line)
	}
	server := serveCluster(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.asked = cancel
	code, stdout, stderr := command(ctx, server, "cluster", "drain", "n2", "--every", "1ms")
	if code != 1 || stdout != "" || !strings.Contains(stderr, "no longer watching; the cluster goes on: n2 drains") || !strings.Contains(stderr, "undrain n2") {
		t.Errorf("Ctrl-C: exit %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	if s.find("n2").State != dunlin.MemberDraining {
		t.Errorf("n2 is %s", s.find("n2").State)
	}
	s.asked = nil
	code, _, stderr = command(t.Context(), server, "cluster", "drain", "n2", "--every", "1ms", "--timeout", "20ms")
	if code != 1 || !strings.Contains(stderr, "not done within 20ms: n2 drains: it owns 1 shard and has 1 replica; the cluster goes on") {
		t.Errorf("timeout: exit %d, %q", code, stderr)
	}
}

// A node that does not answer for a moment is asked again; one that stays silent is given up.
func TestWatchingBearsSilence(t *testing.T) {
	var errs, out bytes.Buffer
	o := order{remote: remote{env: Env{Getenv: func(string) string { return "" }}}, every: time.Millisecond, patience: time.Hour}
	o.out.format = "table"
	c := newVersion(Env{})
	c.SetOut(&out)
	c.SetErr(&errs)
	c.SetContext(t.Context())
	n := 0
	look := func(context.Context) (step, error) {
		switch n++; n {
		case 1:
			return step{line: "half"}, nil
		case 2, 3:
			return step{}, fmt.Errorf("%w: no controller", dunlin.ErrUnavailable)
		}
		return step{done: "all"}, nil
	}
	if err := o.watch(c, result{}, "it goes on", "", look); err != nil || out.String() != "all\n" ||
		errs.String() != "half\nno answer: unavailable: no controller; trying again\n" {
		t.Errorf("got %v, %q, %q", err, out.String(), errs.String())
	}
	o.patience = 5 * time.Millisecond
	err := o.watch(c, result{}, "it goes on", "", func(context.Context) (step, error) { return step{}, dunlin.ErrUnavailable })
	if !errors.Is(err, dunlin.ErrUnavailable) || !strings.Contains(err.Error(), "it goes on, as far as is known") {
		t.Errorf("got %v", err)
	}
}

// On a terminal the progress stays on its line, whatever is said above it.
func TestProgressInPlace(t *testing.T) {
	var b bytes.Buffer
	p := &progress{w: &b, inPlace: true, width: 10}
	p.show("one")
	p.show("one")
	p.show("two\x1b[2J is much too long")
	p.tell("hint")
	p.tell("hint")
	p.show("three")
	p.end()
	want := "\r\x1b[Kone\r\x1b[Ktwo\\x1b[2…\nhint\n\r\x1b[Kthree\n"
	if b.String() != want {
		t.Errorf("got  %q\nwant %q", b.String(), want)
	}
}

func TestSizesAndSpans(t *testing.T) {
	for n, want := range map[int64]string{0: "", 12: "12B", 1 << 20: "1.0MiB", 300 << 30: "300GiB", 1<<40 + 1<<39: "1.5TiB"} {
		if got := bytesOf(n); got != want {
			t.Errorf("bytesOf(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{0: "", 90*time.Second + 1: "1m30s", 2 * time.Minute: "2m", 3 * time.Hour: "3h", 30 * time.Second: "30s"} {
		if got := spanOf(dunlin.Duration(d)); got != want {
			t.Errorf("spanOf(%s) = %q, want %q", d, got, want)
		}
	}
}
