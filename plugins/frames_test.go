package plugins

import (
	"bytes"
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"testing"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins/abi"
	"github.com/dunlin-iot/dunlin/sdk/vectors"
)

// The vectors hold for the host as well: it makes their frames of what a shard hands to it, and of the answers what the
// sources say. The host and the vectors write frames by different code.
func TestHostMakesAndReadsTheVectors(t *testing.T) {
	names, err := fs.Glob(vectors.FS(), "*.txt")
	if err != nil {
		t.Fatal(err)
	}
	made, read := 0, 0
	for _, name := range append(names, "records/records.txt") {
		text, err := fs.ReadFile(vectors.FS(), name)
		if err != nil {
			t.Fatal(err)
		}
		src, err := vectors.ParseSource(string(text))
		if err != nil {
			t.Fatal(err)
		}
		l := Limits{}.withDefaults()
		w, in := newWorker(&l), &instance{limits: &l}
		w.serve(&dunlin.Stage{Made: vectors.MadeNow()}, &Manifest{Capabilities: []string{abi.CapabilityCommand, abi.CapabilityPublish}})
		told := false
		for i := range src.Calls {
			c := &src.Calls[i]
			if told && !c.Carry {
				in.names.reset()
			}
			told = told || tellsNames(c.In)
			if c.ByHand {
				continue
			}
			made++
			w.encode(in, c.Now, c.Works)
			if !bytes.Equal(w.frame, c.In) {
				t.Errorf("%s, %s:\ngot  %x\nwant %x", name, c.What, w.frame, c.In)
			}
			read += readsBack(t, w, c)
		}
	}
	if made < 50 || read < 50 {
		t.Errorf("%d frames made, %d outcomes read: where are the vectors?", made, read)
	}
}

func tellsNames(frame []byte) bool {
	r := abi.NewReader(frame)
	for {
		kind, _, rec, err := r.Next()
		if err != nil || rec == nil {
			return false
		}
		if kind == abi.KindName {
			return true
		}
	}
}

// readsBack decodes a call's answer, whole and cut anywhere, and returns how many outcomes there were.
func readsBack(t *testing.T, w *worker, c *vectors.SourceCall) int {
	t.Helper()
	var want []dunlin.Outcome
	for _, work := range c.Works {
		want = append(want, expected(w, c, work))
	}
	logs := func(b []byte, _ dunlin.Time) []string { return []string{string(b)} }
	whole := map[int]bool{0: true} // where an answer may be cut: the last record's padding may be missing
	for r := abi.NewReader(c.Out); ; {
		at := r.Offset()
		_, _, rec, err := r.Next()
		if must(t, err); rec == nil {
			break
		}
		for n := at + len(rec); n <= r.Offset(); n++ {
			whole[n] = true
		}
	}
	for n := range len(c.Out) {
		if err := w.decode(c.Out[:n], c.Works, c.Now, logs); (err == nil) != whole[n] {
			t.Errorf("%s: an answer of %d bytes instead of %d: %v", c.What, n, len(c.Out), err)
		}
	}
	if err := w.decode(c.Out, c.Works, c.Now, logs); err != nil {
		t.Errorf("%s: %v", c.What, err)
	}
	for i, work := range c.Works {
		if !reflect.DeepEqual(work.Outcome, want[i]) {
			t.Errorf("%s, device %d:\ngot  %+v\nwant %+v", c.What, i, work.Outcome, want[i])
		}
	}
	return len(want)
}

// expected is what the host makes of what the source says: it has an opinion on moments, and on states with a note.
func expected(w *worker, c *vectors.SourceCall, work *dunlin.Work) dunlin.Outcome {
	o := work.Outcome
	if o.State == nil && o.Failure == "" && (work.Made.Module != 0 || work.Made.Config != 0) {
		if o.State = work.State; o.State == nil {
			o.State = []byte{}
		}
	}
	var timers []dunlin.TimerSet
	for _, s := range o.Timers {
		if s.Due != 0 {
			s.Due = max(s.Due, c.Now+timerDelayMin)
		}
		if i := slices.IndexFunc(timers, func(t dunlin.TimerSet) bool { return t.Name == s.Name }); i >= 0 {
			timers[i] = s
		} else {
			timers = append(timers, s)
		}
	}
	o.Timers = timers
	for i := range o.Commands {
		if x := &o.Commands[i]; x.Deadline == 0 {
			x.Deadline = c.Now.Add(dunlin.CommandDeadlineDefault)
		}
	}
	for i := range o.Refused {
		o.Refused[i].Reason = "plugin: " + o.Refused[i].Reason
	}
	return o
}

// A note comes with a state that is somebody else's, with nothing else, and again until the state is kept by this stage.
func TestNotesComeUntilTheStateIsOurs(t *testing.T) {
	l := Limits{}.withDefaults()
	in := &instance{limits: &l}
	w := newWorker(&l)
	now := dunlin.Made{Module: 7, Config: 8}
	for _, c := range []struct {
		stage, made dunlin.Made
		want        string
	}{
		{now, now, ""},
		{now, dunlin.Made{}, ""},
		{dunlin.Made{}, now, ""},
		{now, dunlin.Made{Module: 9, Config: 8}, "128 "},
		{now, dunlin.Made{Module: 7, Config: 9}, "129 "},
		{now, dunlin.Made{Module: 9, Config: 9}, "128 129 "},
		{now, dunlin.Made{Config: 9}, "129 "},
	} {
		w.serve(&dunlin.Stage{Made: c.stage}, nil)
		work := &dunlin.Work{State: []byte("old"), Made: c.made, Inputs: []dunlin.Input{{Kind: dunlin.InputTimer, Timer: "x"}}}
		w.encode(in, 1, []*dunlin.Work{work})
		if got := kinds(t, w.frame); got != "4 5 "+c.want+"8 " {
			t.Errorf("%+v: kinds %s", c, got)
		}
		for _, answer := range [][]byte{nil, abi.AppendText(abi.AppendGroup(nil, 0), abi.KindState, 0, "old")} {
			if err := w.decode(answer, []*dunlin.Work{work}, 1, nil); err != nil {
				t.Fatal(err)
			}
			if got := work.Outcome.State; c.want != "" != (string(got) == "old") || c.want == "" && got != nil {
				t.Errorf("%+v: state %q", c, got)
			}
		}
		failed := abi.AppendText(abi.AppendGroup(nil, 0), abi.KindError, 0, "no")
		if err := w.decode(failed, []*dunlin.Work{work}, 1, nil); err != nil || work.Outcome.State != nil {
			t.Errorf("%+v, failed: %v, state %q", c, err, work.Outcome.State)
		}
	}
}

func kinds(t *testing.T, frame []byte) (list string) {
	t.Helper()
	r := abi.NewReader(frame)
	for {
		kind, _, rec, err := r.Next()
		must(t, err)
		if rec == nil {
			return list
		}
		list += fmt.Sprint(uint16(kind), " ")
	}
}
