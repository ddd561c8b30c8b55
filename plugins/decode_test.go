package plugins

import (
	"testing"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins/abi"
)

// FuzzDecode hands any bytes to the reader of answers: no panic, and what it lets through is within the limits.
func FuzzDecode(f *testing.F) {
	good := abi.AppendGroup(nil, 0)
	good = abi.AppendText(good, abi.KindState, 0, "state")
	good = abi.AppendAlert(good, abi.FlagRaise, 0, abi.SeverityMajor, 9, "too-warm", "key", "text")
	good = abi.AppendDerived(good, abi.ValueNumber, 5, 1.5, "mean", "Cel", "")
	good = abi.AppendDerived(good, abi.ValueText, 5, 0, "name", "", "text")
	good = abi.AppendSet(good, 12, "timer")
	good = abi.AppendText(good, abi.KindLog, abi.LogInfo, "hello")
	good = abi.AppendCommand(good, 0, 50, "reboot", []byte("{}"))
	good = abi.AppendPublish(good, 42, "a/b", []byte("x"))
	good = abi.AppendInputError(good, 0, "why not")
	good = abi.AppendGroup(good, 1)
	good = abi.AppendText(good, abi.KindError, 0, "why")
	f.Add(good)
	f.Add(good[:50])
	l := Limits{StateBytes: 64, EmitsPerEvent: 8, TextBytes: 32}.withDefaults()
	w := newWorker(&l)
	w.serve(&dunlin.Stage{}, &Manifest{Capabilities: []string{abi.CapabilityCommand, abi.CapabilityPublish}})
	f.Fuzz(func(t *testing.T, out []byte) {
		works := benchWorks(2)
		w.lines = w.lines[:0]
		if err := w.decode(out, works, 1e15, func(b []byte, _ dunlin.Time) []string { return []string{string(b)} }); err != nil {
			for _, work := range works {
				if work.Outcome.State != nil || work.Outcome.Records != nil || work.Outcome.Failure != "" {
					t.Fatalf("%v, but %+v", err, work.Outcome)
				}
			}
			return
		}
		for _, work := range works {
			checkOutcome(t, &work.Outcome, &l)
		}
	})
}

func checkOutcome(t *testing.T, o *dunlin.Outcome, l *Limits) {
	t.Helper()
	if len(o.State) > l.StateBytes ||
		len(o.Records)+len(o.Signals)+len(o.Timers)+len(o.Commands)+len(o.Publish)+len(o.Refused) > l.EmitsPerEvent {
		t.Fatalf("beyond the limits: %+v", o)
	}
	if o.Failure != "" && (o.State != nil || o.Records != nil || o.Signals != nil || o.Timers != nil) {
		t.Fatalf("a failure with effects: %+v", o)
	}
	for i := range o.Commands {
		if c := &o.Commands[i]; dunlin.ValidateCommandName(c.Name) != nil || len(c.Payload) > dunlin.CommandBytesMax || c.Deadline <= 1e15 {
			t.Fatalf("%+v", c)
		}
	}
	for i := range o.Publish {
		if p := &o.Publish[i]; dunlin.ValidateTopic(p.Topic) != nil || len(p.Payload) > dunlin.PublicationBytesMax {
			t.Fatalf("%+v", p)
		}
	}
	if len(o.Refused) > 1 || len(o.Refused) == 1 && o.Refused[0].Input != 0 {
		t.Fatalf("%+v", o.Refused)
	}
	for i := range o.Records {
		if err := dunlin.ValidateMetric(o.Records[i].Metric); err != nil {
			t.Fatal(err)
		}
		if _, err := o.Records[i].Time.MarshalText(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range o.Signals {
		if s := &o.Signals[i]; dunlin.ValidatePluginName(s.Rule) != nil || s.Input != 0 || len(s.Text) > 3*l.TextBytes {
			t.Fatalf("%+v", s)
		}
	}
}

// What goes into a frame comes out of it, for the guest that reads it.
func TestEncodedFrameReadsBack(t *testing.T) {
	l := Limits{}.withDefaults()
	w := newWorker(&l)
	in := &instance{limits: &l}
	works := []*dunlin.Work{{DeviceKey: dunlin.DeviceKey{Device: "d1"}, Seq: 7, State: []byte("abc"), Inputs: []dunlin.Input{
		{Kind: dunlin.InputTelemetry, Received: 11, Flags: dunlin.FlagSkewed, Records: []dunlin.Record{
			{Metric: "temp", Unit: "Cel", Time: 10, Num: -0.5, Kind: dunlin.Number},
			{Metric: "name", Time: 10, Str: "fridge", Kind: dunlin.Text},
			{Metric: "temp", Unit: "Cel", Time: 12, Num: 3, Kind: dunlin.Number}}},
		{Kind: dunlin.InputRaw, Received: 12, Format: dunlin.FormatOctets, Payload: []byte{1, 2, 3}},
		{Kind: dunlin.InputTimer, Received: 13, Timer: "silent"},
	}}}
	for round, names := range []string{"1=temp 2=Cel 3=name ", ""} {
		if n := w.encode(in, 99, works); n != 3 {
			t.Fatalf("%d inputs", n)
		}
		if got, want := describe(t, w.frame), "batch 99 1 3 | device 7 d1 abc | "+names+
			"telemetry 11 1: 1/2 10 -0.5; 3/0 10 \"fridge\"; 1/2 12 3;  | raw 12 42 010203 | timer 13 silent | "; got != want {
			t.Errorf("round %d:\ngot  %s\nwant %s", round, got, want)
		}
	}
}
