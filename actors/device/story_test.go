package device

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/dunlin-iot/dunlin"
)

// The scripts in testdata/stories play commands to one machine. Times are seconds; every uplink carries a name under which its answer shows.
//
//	device id=d1 [domain=d]                            a machine as activation makes it
//	rules [register] [skew=N] [payload=N] [domain=d]   what later uplinks are accepted under; "rules none" for no domain
//	accept NAME at=N [msg=N] [repeat] [exchange] [v=metric:value@time …] [raw=N] [gateway=domain] [result=ID[:payload]] [lifecycle=operator]
//	occur at=N                                         a life cycle event of nobody's
//	fire NAME due=N
//	propose now=N                                      Inputs and Propose
//	stage N now=N [state=s] [raise=rule[/key]:severity@input] [update=rule[/key]:severity@input] [clear=rule[/key]@input]
//	        [text=t] [timer=name:due] [record=m:v@t] [command=name:deadline] [commands=N] [publish=topic:payload] [refuse=input:why]
//	        [made=N] [old] [fail=why]                  text is the last signal's; old: the entry can't say effects
//	apply · abort · release · show
func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata/stories", func(t *testing.T, path string) {
		s := &story{rules: &Rules{Domain: "plain", Register: true}, names: map[*dunlin.Uplink]string{}}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			s.out.Reset()
			for line := range strings.Lines(d.Input) {
				s.run(t, d, strings.Fields(line))
			}
			return s.out.String()
		})
	})
}

type story struct {
	m      Machine
	rules  *Rules
	change dunlin.Change
	names  map[*dunlin.Uplink]string
	out    strings.Builder
}

func (s *story) printf(format string, args ...any) { fmt.Fprintf(&s.out, format+"\n", args...) }

func secs(v string) dunlin.Time {
	f, err := strconv.ParseFloat(v, 64)
	if err != nil {
		panic(err)
	}
	return dunlin.Time(f * 1e6)
}

func (s *story) run(t *testing.T, d *datadriven.TestData, f []string) {
	args := map[string][]string{}
	for _, a := range f[1:] {
		k, v, _ := strings.Cut(a, "=")
		args[k] = append(args[k], v)
	}
	get := func(k string) string {
		if v := args[k]; len(v) > 0 {
			return v[0]
		}
		return ""
	}
	has := func(k string) bool { _, ok := args[k]; return ok }
	num := func(k string) int { n, _ := strconv.Atoi(get(k)); return n }
	switch f[0] {
	case "device":
		s.m = Make(dunlin.DeviceState{DeviceKey: dunlin.DeviceKey{Tenant: "t", Device: dunlin.DeviceID(get("id"))},
			Domain: dunlin.DomainID(get("domain"))})
	case "rules":
		if s.rules = nil; !has("none") {
			s.rules = &Rules{Domain: "plain", Register: has("register"), PayloadBytesMax: num("payload"),
				SkewMax: time.Duration(num("skew")) * time.Second}
			if has("domain") {
				s.rules.Domain = dunlin.DomainID(get("domain"))
			}
		}
	case "accept":
		s.accept(f[1], args)
	case "fire":
		s.printf("%s: fires %v", f[1], s.m.Fire(dunlin.DueTimer{DeviceKey: s.m.Key(), Name: f[1], Due: secs(get("due"))}))
	case "occur":
		s.printf("occurs %v", s.m.Occur(dunlin.Input{Kind: dunlin.InputLifecycle, Received: secs(get("at"))}))
	case "propose":
		s.m.Propose(&s.change, s.m.Inputs(nil))
		s.printf("version %d of %s in %s, created %v", s.change.Version, s.change.DeviceKey, s.change.Domain, s.change.Created)
		for i, in := range s.change.Inputs {
			s.printf("  seq %d kind %d %s%s", s.change.Seq(i), in.Kind, in.Timer, flags(in.Flags))
		}
		for _, t := range s.change.Timers {
			s.printf("  timer %s due %v was %v", t.Name, seconds(t.Due), seconds(t.Was))
		}
	case "stage":
		s.stage(f[1], f[2:])
	case "apply":
		s.answers(s.m.Apply(&s.change))
	case "abort":
		s.answers(s.m.Abort(dunlin.Receipt{Err: dunlin.ErrUnavailable, RetryAfterSeconds: 1}))
	case "release":
		u, n := s.m.Release()
		s.printf("%d released", n)
		for u != nil {
			next := u.Next
			v, r := s.m.Accept(u, s.rules)
			s.verdict(u, v, r)
			u = next
		}
	case "show":
		s.show()
	default:
		d.Fatalf(t, "unknown command %q", f[0])
	}
}

func flags(f dunlin.InputFlags) string {
	if f&dunlin.FlagSkewed != 0 {
		return "skewed"
	}
	if f&dunlin.FlagTimedOut != 0 {
		return " timed out"
	}
	return ""
}

func record(v string) dunlin.Record {
	metric, rest, _ := strings.Cut(v, ":")
	value, at, _ := strings.Cut(rest, "@")
	n, err := strconv.ParseFloat(value, 64)
	r := dunlin.Record{Metric: metric, Kind: dunlin.Number, Num: n}
	if err != nil {
		r.Kind, r.Num, r.Str = dunlin.Text, 0, value
	}
	if at != "" {
		r.Time = secs(at)
	}
	return r
}

func (s *story) accept(name string, args map[string][]string) {
	u := &dunlin.Uplink{DeviceKey: s.m.Key()}
	u.Kind = dunlin.InputTelemetry
	u.Received = secs(args["at"][0])
	u.Sender = dunlin.Principal{Kind: dunlin.PrincipalDevice, Tenant: "t", ID: string(u.Device)}
	for k, vs := range args {
		switch k {
		case "msg":
			n, _ := strconv.Atoi(vs[0])
			u.MessageID = uint64(n)
		case "repeat":
			u.Flags |= dunlin.FlagMayRepeat
		case "exchange":
			u.Flags |= dunlin.FlagExchange
		case "v":
			for _, v := range vs {
				u.Records = append(u.Records, record(v))
			}
		case "metrics":
			n, _ := strconv.Atoi(vs[0])
			for i := range n {
				u.Records = append(u.Records, dunlin.Record{Metric: fmt.Sprint("m", i), Kind: dunlin.Number, Time: u.Received})
			}
		case "raw":
			n, _ := strconv.Atoi(vs[0])
			u.Kind, u.Payload = dunlin.InputRaw, make([]byte, n)
		case "gateway":
			u.Sender = dunlin.Principal{Kind: dunlin.PrincipalGateway, Tenant: "t", ID: "gw", Domain: dunlin.DomainID(vs[0])}
		case "result":
			id, payload, _ := strings.Cut(vs[0], ":")
			u.Kind, u.Timer, u.Payload = dunlin.InputResult, id, []byte(payload)
		case "lifecycle":
			u.Kind = dunlin.InputLifecycle
			if vs[0] == "operator" {
				u.Sender = dunlin.Principal{Kind: dunlin.PrincipalOperator, Tenant: "t"}
			}
		case "kind":
			u.Kind = dunlin.InputTimer
		}
	}
	s.names[u] = name
	v, r := s.m.Accept(u, s.rules)
	s.verdict(u, v, r)
}

func (s *story) verdict(u *dunlin.Uplink, v Verdict, r dunlin.Receipt) {
	word := [...]string{Taken: "taken", Repeats: "waits for its original", Queued: "queued"}
	if v == Answered {
		s.answer(u, r)
		return
	}
	s.printf("%s: %s", s.names[u], word[v])
}

func (s *story) answer(u *dunlin.Uplink, r dunlin.Receipt) {
	switch {
	case r.Err != nil:
		s.printf("%s: %v", s.names[u], r.Err)
	case r.Duplicate:
		s.printf("%s: duplicate of seq %d", s.names[u], r.Seq)
	case r.Created:
		s.printf("%s: seq %d, created", s.names[u], r.Seq)
	default:
		s.printf("%s: seq %d", s.names[u], r.Seq)
	}
}

func (s *story) answers(a Answers) {
	for {
		u, r := a.Next()
		if u == nil {
			return
		}
		s.answer(u, r)
	}
}

func signal(v string, raise bool) dunlin.AlertSignal {
	v, input, _ := strings.Cut(v, "@")
	n, _ := strconv.Atoi(input)
	v, severity, _ := strings.Cut(v, ":")
	rule, key, _ := strings.Cut(v, "/")
	sig := dunlin.AlertSignal{Input: n, Raise: raise, Rule: rule, Key: key}
	if raise && sig.Severity.UnmarshalText([]byte(severity)) != nil {
		sig.Severity = 9
	}
	return sig
}

func (s *story) stage(n string, args []string) {
	stage, _ := strconv.Atoi(n)
	var out dunlin.Outcome
	from := Origin{Stage: uint8(stage), Hash: dunlin.ModuleHash{byte(stage)}, Effects: true}
	for _, arg := range args {
		k, v, _ := strings.Cut(arg, "=")
		switch k {
		case "now":
			from.Now = secs(v)
		case "state":
			out.State = []byte(v)
		case "raise":
			out.Signals = append(out.Signals, signal(v, true))
		case "clear":
			out.Signals = append(out.Signals, signal(v, false))
		case "update":
			sig := signal(v, true)
			if sig.Raise, sig.Update = false, true; strings.Contains(v, ":@") {
				sig.Severity = 0
			}
			out.Signals = append(out.Signals, sig)
		case "text":
			out.Signals[len(out.Signals)-1].Text = v
		case "command":
			name, deadline, _ := strings.Cut(v, ":")
			out.Commands = append(out.Commands, dunlin.Command{Name: name, Payload: []byte("now"), Deadline: secs(deadline)})
		case "commands":
			n, _ := strconv.Atoi(v)
			for range n {
				out.Commands = append(out.Commands, dunlin.Command{Name: "again"})
			}
		case "publish":
			topic, payload, _ := strings.Cut(v, ":")
			out.Publish = append(out.Publish, dunlin.Publication{Topic: topic, Payload: []byte(payload)})
		case "refuse":
			n, why, _ := strings.Cut(v, ":")
			input, _ := strconv.Atoi(n)
			out.Refused = append(out.Refused, dunlin.InputError{Input: input, Reason: why})
		case "made":
			n, _ := strconv.Atoi(v)
			from.Made = dunlin.Made{Module: uint32(n)}
		case "old":
			from.Effects = false
		case "raises":
			for i := range 65 {
				out.Signals = append(out.Signals, signal(fmt.Sprintf("%s/%d:info@0", v, i), true))
			}
		case "timer":
			name, due, _ := strings.Cut(v, ":")
			out.Timers = append(out.Timers, dunlin.TimerSet{Name: name, Due: secs(due)})
		case "record":
			out.Records = append(out.Records, record(v))
		case "fail":
			out.Failure = v
		}
	}
	was := len(s.change.Alerts)
	ok := s.m.StageOf(&s.change, &from, &out)
	if !ok {
		s.printf("stage %d failed: %s", stage, s.change.Stages[len(s.change.Stages)-1].Failure)
	}
	for _, a := range s.change.Alerts[was:] {
		s.printf("  alert %s %s %s%s", a.ID(), a.Severity, a.State, says(a.Text))
	}
	for _, c := range s.change.Commands {
		s.printf("  command %s %s deadline %v", c.ID, c.Name, seconds(c.Deadline))
	}
	for _, p := range s.change.Publish {
		s.printf("  publish %s %s", p.Topic, p.Payload)
	}
	if res := &s.change.Stages[len(s.change.Stages)-1]; res.Made != (dunlin.Made{}) || len(res.Refused) > 0 {
		s.printf("  state %q made by %d, refused %v", res.State, res.Made.Module, res.Refused)
	}
	for _, t := range s.change.Timers {
		s.printf("  timer %s due %v was %v", t.Name, seconds(t.Due), seconds(t.Was))
	}
}

func says(text string) string {
	if text == "" {
		return ""
	}
	return ": " + text
}

func seconds(t dunlin.Time) float64 { return float64(t) / 1e6 }

func (s *story) show() {
	st := s.m.State()
	s.printf("%s %s version %d in %q, seen %v", s.m.Phase(), st.DeviceKey, st.Version, st.Domain, seconds(st.SeenAt))
	for i, r := range st.Reported {
		if i == 8 {
			s.printf("  … %d metrics", len(st.Reported))
			break
		}
		s.printf("  %s = %v at %v", r.Metric, r.Value(), seconds(r.Time))
	}
	for _, p := range st.Plugins {
		s.printf("  plugin %d state %q%s", p.Stage, p.State, made(p.Made))
	}
	for _, a := range st.Alerts {
		s.printf("  active %s %s%s", a.ID(), a.Severity, says(a.Text))
	}
	for _, c := range st.Commands {
		s.printf("  command %s %s waits until %v", c.ID, c.Name, seconds(c.Deadline))
	}
	for _, t := range st.Timers {
		s.printf("  timer %s due %v", t.Name, seconds(t.Due))
	}
	if len(st.Seen) > 0 {
		s.printf("  %d messages in the window", len(st.Seen))
	}
}

func made(m dunlin.Made) string {
	if m == (dunlin.Made{}) {
		return ""
	}
	return fmt.Sprint(" made by ", m.Module)
}

// TestReceiptsMatch shows that the answers made once match the errors that gateways branch on.
func TestReceiptsMatch(t *testing.T) {
	for err, want := range map[error]error{errQueue: dunlin.ErrOverloaded, errForeign: dunlin.ErrForbidden,
		errKind: dunlin.ErrInvalid, errAnswer: dunlin.ErrNotFound, errMetrics: dunlin.ErrTooLarge} {
		if !errors.Is(err, want) {
			t.Errorf("%v does not match %v", err, want)
		}
	}
}

// TestForwarded: what another node forwards once more is the same uplink, by its message id and receipt; another uplink of the same
// message id, as MQTT's packet ids come again, is another, if it was received later.
func TestForwarded(t *testing.T) {
	m := Make(dunlin.DeviceState{DeviceKey: dunlin.DeviceKey{Tenant: "t", Device: "d"}})
	rules := &Rules{Domain: "x", Register: true}
	take := func(id uint64, at dunlin.Time, flags dunlin.InputFlags) (Verdict, dunlin.Receipt) {
		u := &dunlin.Uplink{}
		u.Kind, u.MessageID, u.Received, u.Flags = dunlin.InputTelemetry, id, at, flags
		v, r := m.Accept(u, rules)
		if v == Taken {
			if u.Flags&dunlin.FlagForwarded != 0 {
				t.Error("the flag gets into the entry")
			}
			var c dunlin.Change
			m.Propose(&c, m.Inputs(nil))
			a := m.Apply(&c)
			_, r = a.Next()
		}
		return v, r
	}
	const forwarded, again = dunlin.FlagForwarded, dunlin.FlagMayRepeat
	for i, step := range []struct {
		at    dunlin.Time
		flags dunlin.InputFlags
		want  Verdict
		seq   uint64
	}{
		{100, forwarded, Taken, 1},
		{100, forwarded, Answered, 1},
		{200, forwarded, Taken, 2}, // the packet id comes again, with another publish
		{100, forwarded, Answered, 1},
		{200, forwarded, Answered, 2},
		{300, again | forwarded, Answered, 2}, // DUP: its sender says so
		{400, 0, Taken, 3},
		{400, forwarded, Answered, 3}, // first tried here, then elsewhere
		{350, 0, Answered, 3},         // comes after its own repetition, which went another way
		{350, forwarded, Answered, 3},
		{500, 0, Taken, 4},
	} {
		if v, r := take(4711, step.at, step.flags); v != step.want || r.Seq != step.seq || r.Duplicate != (step.want == Answered) {
			t.Errorf("step %d: verdict %d, %+v", i, v, r)
		}
	}
}
