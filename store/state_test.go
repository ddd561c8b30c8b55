package store

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/dunlin-iot/dunlin"
)

// The scripts apply entries and read what they made. Times are durations since the epoch. An entry is written as
//
//	change d1 v=2 domain=cold created     what follows belongs to it
//	  report 10s temp=4.5 door=shut       an input, its records at the same time
//	  fired silence 600s                  an input: a timer that was due then
//	  state 0 abc                         stage 0 left this state
//	  derived 0 10s mean=4.5              and this reading
//	  fail 1 out-of-fuel                  stage 1 failed
//	  alert raised too-warm seq=2 at=10s since=10s sev=3
//	  timer silence due=610s was=0s
//	put devices default/d1 {"domain":"cold"}
//	delete devices default/d1
func TestStateScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/state", func(t *testing.T, path string) {
		db := openTest(t, small(vfs.NewMem(), 2))
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			out, err := stateCommand(t, db, d)
			if err != nil {
				out += fmt.Sprintln("error:", err)
			}
			return out
		})
	})
}

func stateCommand(t *testing.T, db *DB, d *datadriven.TestData) (string, error) {
	var out strings.Builder
	var shard, index, term, limit int
	term = 1
	d.MaybeScanArgs(t, "shard", &shard)
	d.MaybeScanArgs(t, "index", &index)
	d.MaybeScanArgs(t, "term", &term)
	d.MaybeScanArgs(t, "limit", &limit)
	arg := func(name string) (v string) { d.MaybeScanArgs(t, name, &v); return v }
	s, sh := db.State(), dunlin.ShardID(shard)
	key := dunlin.DeviceKey{Tenant: "default", Device: dunlin.DeviceID(arg("device"))}
	switch d.Cmd {
	case "apply":
		e := parseEntry(t, d.Input)
		e.Shard = sh
		c := committed(e, uint64(index))
		c.Term = uint64(term)
		return "", s.Apply([]dunlin.Committed{c})
	case "flush":
		return "", s.eng.Flush()
	case "device":
		st, ok, err := s.LoadDevice(sh, key)
		if !ok {
			return "none\n", err
		}
		printState(&out, st)
		return out.String(), err
	case "timers":
		due, next, err := s.TimersDue(sh, at(t, arg("before")), limit)
		for _, tm := range due {
			fmt.Fprintf(&out, "%s %s %v\n", tm.DeviceKey, tm.Name, since(tm.Due))
		}
		fmt.Fprintf(&out, "next %v\n", since(next))
		return out.String(), err
	case "rows":
		rows, err := s.Rows(sh, arg("table"), arg("prefix"), arg("after"), limit)
		for _, r := range rows {
			v, ok, err := s.Row(sh, r.Table, r.Key)
			fmt.Fprintf(&out, "%s %s %s %t %t %v\n", r.Table, r.Key, r.Value, string(v) == string(r.Value), ok, err)
		}
		return out.String(), err
	case "devices":
		ids, err := s.DevicesOf(sh, dunlin.DevicesQuery{Tenant: "default", Domain: dunlin.DomainID(arg("domain")), Prefix: arg("prefix"), Limit: limit}, dunlin.DeviceID(arg("after")))
		return fmt.Sprintln(ids), err
	case "readings":
		p, err := s.Readings(sh, dunlin.ReadingsQuery{DeviceKey: key})
		if err == nil {
			for _, r := range p.Rows {
				fmt.Fprintf(&out, "%v %s %v\n", since(r.Time), r.Metric, r.Value())
			}
		}
		return out.String(), err
	case "alerts":
		return alertsCommand(t, s, d)
	case "dead":
		letters, err := s.DeadLetters(nil, dunlin.DeadLettersQuery{Device: key.Device, Limit: limit})
		for _, l := range letters {
			fmt.Fprintf(&out, "%v %s seq %d stage %d %s: %d records\n", since(l.At), l.DeviceKey, l.Seq, l.Stage, l.Reason, len(l.Input.Records))
		}
		return out.String(), err
	case "tables":
		return tables(t, s), nil
	}
	t.Fatalf("unknown command %s", d.Cmd)
	return "", nil
}

func printState(out *strings.Builder, st *dunlin.DeviceState) {
	fmt.Fprintf(out, "%s in %s, version %d, seen %v, %d ids\n", st.DeviceKey, st.Domain, st.Version, since(st.SeenAt), len(st.Seen))
	for _, r := range st.Reported {
		fmt.Fprintf(out, "  %s = %v at %v\n", r.Metric, r.Value(), since(r.Time))
	}
	for _, p := range st.Plugins {
		fmt.Fprintf(out, "  stage %d state %s\n", p.Stage, p.State)
	}
	for i := range st.Alerts {
		fmt.Fprintf(out, "  alert %s %v\n", st.Alerts[i].ID(), st.Alerts[i].State)
	}
	for _, tm := range st.Timers {
		fmt.Fprintf(out, "  timer %s %v\n", tm.Name, since(tm.Due))
	}
}

func alertsCommand(t *testing.T, s *State, d *datadriven.TestData) (string, error) {
	var out strings.Builder
	var device, domain string
	var limit, state int
	d.MaybeScanArgs(t, "device", &device)
	d.MaybeScanArgs(t, "domain", &domain)
	d.MaybeScanArgs(t, "limit", &limit)
	d.MaybeScanArgs(t, "state", &state)
	q := dunlin.AlertsQuery{Device: dunlin.DeviceID(device), Domain: dunlin.DomainID(domain), Active: d.HasArg("active"), State: dunlin.AlertState(state), Limit: limit}
	for page := 1; ; page++ {
		p, err := s.Alerts(nil, q)
		if err != nil {
			return out.String(), err
		}
		for i := range p.Alerts {
			a := &p.Alerts[i]
			fmt.Fprintf(&out, "%v %s %v %v since %v\n", since(a.At), a.ID(), a.State, a.Severity, since(a.RaisedAt))
		}
		if q.Cursor = p.Next; q.Cursor == "" {
			return out.String(), nil
		}
		fmt.Fprintf(&out, "-- page %d --\n", page)
	}
}

// tables counts the rows of each table of devices.
func tables(t *testing.T, s *State) string {
	var out strings.Builder
	counts := map[byte]int{}
	it, err := s.eng.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		counts[it.Key()[2]]++
	}
	for _, tab := range []struct {
		table byte
		name  string
	}{{tabDevice, "device"}, {tabReadings, "readings"}, {tabAlert, "alert"}, {tabAlertTime, "alert by time"}, {tabTimer, "timer"},
		{tabDead, "dead letters"}, {tabRegistry, "registry"}, {tabDomain, "domain"}} {
		fmt.Fprintf(&out, "%s %d\n", tab.name, counts[tab.table])
	}
	return out.String()
}

func since(t dunlin.Time) time.Duration { return t.Sub(0) }

func at(t *testing.T, s string) dunlin.Time {
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return dunlin.Time(0).Add(d)
}

func parseEntry(t *testing.T, text string) *dunlin.Entry {
	e := &dunlin.Entry{Term: 1}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if f[0] == "put" || f[0] == "delete" {
			p := dunlin.Put{Table: f[1], Key: f[2]}
			if f[0] == "put" {
				p.Value = []byte(f[3])
			}
			e.Puts = append(e.Puts, p)
			continue
		}
		if f[0] == "change" {
			e.Changes = append(e.Changes, dunlin.Change{DeviceKey: dunlin.DeviceKey{Tenant: "default", Device: dunlin.DeviceID(f[1])}, Domain: "cold"})
		}
		parseChange(t, e, &e.Changes[len(e.Changes)-1], f)
	}
	return e
}

// pairs reads name=value words.
func pairs(f []string) map[string]string {
	m := map[string]string{}
	for _, w := range f {
		k, v, _ := strings.Cut(w, "=")
		m[k] = v
	}
	return m
}

func number(t *testing.T, s string) uint64 {
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func parseRecords(when dunlin.Time, f []string) (recs []dunlin.Record) {
	for _, w := range f {
		k, v, _ := strings.Cut(w, "=")
		r := dunlin.Record{Metric: k, Time: when, Kind: dunlin.Text, Str: v}
		if n, err := strconv.ParseFloat(v, 64); err == nil {
			r.Kind, r.Num, r.Str = dunlin.Number, n, ""
		}
		recs = append(recs, r)
	}
	return recs
}

func parseChange(t *testing.T, e *dunlin.Entry, c *dunlin.Change, f []string) {
	p := pairs(f)
	stage := func(n string) *dunlin.StageResult {
		for i := range c.Stages {
			if fmt.Sprint(c.Stages[i].Stage) == n {
				return &c.Stages[i]
			}
		}
		c.Stages = append(c.Stages, dunlin.StageResult{Stage: uint8(number(t, n))})
		return &c.Stages[len(c.Stages)-1]
	}
	switch f[0] {
	case "change":
		c.Version = number(t, p["v"])
		if p["domain"] != "" {
			c.Domain = dunlin.DomainID(p["domain"])
		}
		_, c.Created = p["created"]
	case "report":
		when := at(t, f[1])
		e.At = max(e.At, when)
		c.Inputs = append(c.Inputs, dunlin.Input{Kind: dunlin.InputTelemetry, MessageID: uint64(when), Received: when, Records: parseRecords(when, f[2:])})
	case "fired":
		c.Inputs = append(c.Inputs, dunlin.Input{Kind: dunlin.InputTimer, Timer: f[1], Received: at(t, f[2])})
	case "state":
		st := stage(f[1])
		st.StateSet, st.State = true, []byte(f[2])
	case "derived":
		st := stage(f[1])
		st.Records = append(st.Records, parseRecords(at(t, f[2]), f[3:])...)
	case "fail":
		stage(f[1]).Failure = f[2]
	case "alert":
		a := dunlin.Alert{Tenant: c.Tenant, Device: c.Device, Domain: c.Domain, Rule: f[2], Key: p["key"], RaisedSeq: number(t, p["seq"]),
			At: at(t, p["at"]), RaisedAt: at(t, p["since"]), Severity: dunlin.Severity(number(t, p["sev"]))}
		if err := a.State.UnmarshalText([]byte(f[1])); err != nil {
			t.Fatal(err)
		}
		c.Alerts = append(c.Alerts, a)
	case "timer":
		c.Timers = append(c.Timers, dunlin.TimerSet{Name: f[1], Due: at(t, p["due"]), Was: at(t, p["was"])})
	default:
		t.Fatalf("unknown line %q", f)
	}
}
