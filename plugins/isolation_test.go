package plugins_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins"
)

// burners runs a guest that never ends, from so many goroutines as domain "burner", until the function that is returned is
// called: each call takes its full time and traps.
func burners(t testing.TB, b *bench, goroutines int) (stop func()) {
	st := b.stage(runaways()["integers"].build(), "")
	var wg sync.WaitGroup
	var over atomic.Bool
	for g := range goroutines {
		wg.Go(func() {
			for n := 0; !over.Load(); n++ {
				if err := b.Process("burner", st, 0, t0+dunlin.Time(n), []*dunlin.Work{raw(fmt.Sprint("burner-", g, "-", n), "x")}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	return func() {
		over.Store(true)
		wg.Wait()
	}
}

// latencies makes single crossings, one every 300 µs, and returns what each took, the shortest first.
func latencies(t testing.TB, b *bench, st *dunlin.Stage, n int) []time.Duration {
	works := batchOf(1)
	tick := time.NewTicker(300 * time.Microsecond)
	defer tick.Stop()
	took := make([]time.Duration, 0, n)
	for range n {
		<-tick.C
		began := time.Now()
		process(t, b, st, t0, works...)
		took = append(took, time.Since(began))
		if works[0].Outcome.Failure != "" {
			t.Fatal(works[0].Outcome.Failure)
		}
	}
	slices.Sort(took)
	return took
}

// BenchmarkIsolation measures single crossings of one domain, alone and beside another that burns its full time in each call,
// from 8 goroutines: on as many slots as there are processors, what a call waits is what is left of a slice.
func BenchmarkIsolation(b *testing.B) {
	host := newBench(b, plugins.Config{Limits: plugins.Limits{BadDevices: 1 << 30}})
	st := host.stage(plugin(nil).build(), "")
	process(b, host, st, t0, batchOf(1)...)
	at := func(took []time.Duration, p float64) float64 {
		return float64(took[int(float64(len(took)-1)*p)]) / 1000
	}
	for b.Loop() {
		alone := latencies(b, host, st, 3000)
		stop := burners(b, host, 8)
		latencies(b, host, st, 100)
		beside := latencies(b, host, st, 3000)
		stop()
		for _, p := range []float64{0.5, 0.99, 0.999} {
			b.ReportMetric(at(alone, p), fmt.Sprintf("alone-p%g-µs", p*100))
			b.ReportMetric(at(beside, p), fmt.Sprintf("beside-p%g-µs", p*100))
		}
	}
}

// One domain burns all that it can get; another's calls still take far less than one of the burner's.
func TestABurnerDoesNotHoldUpOthers(t *testing.T) {
	if testing.Short() {
		t.Skip("measures time")
	}
	b := newBench(t, plugins.Config{Limits: plugins.Limits{BadDevices: 1 << 30}})
	st := b.stage(plugin(nil).build(), "")
	process(t, b, st, t0, batchOf(1)...)
	stop := burners(t, b, 8)
	defer stop()
	took := latencies(t, b, st, 500)
	median, p95 := took[len(took)/2], took[len(took)*95/100]
	t.Logf("median %v, 95 %% %v, the longest %v", median, p95, took[len(took)-1])
	if median > 2*time.Millisecond { // first come, first served it were four times a call's 9 ms
		t.Errorf("the median is %v", median)
	}
	if !b.Busy(dunlin.DefaultTenant, "burner") {
		t.Error("the burner is not called busy")
	}
	if per, use := b.Cost(dunlin.DefaultTenant, "burner"); per < time.Millisecond || use < 0.3 {
		t.Errorf("the burner's cost is told as %v an input, %.2f processors", per, use)
	}
	if b.Busy(dunlin.DefaultTenant, "nobody") {
		t.Error("a domain that isn't there is busy")
	}
}

// A version that fails on several devices is reported once, and is not called until it was replaced; its inputs are
// dead-lettered meanwhile. Another tenant's use of the same module is no matter of it.
func TestABadVersionIsReported(t *testing.T) {
	type report struct {
		tenant dunlin.Tenant
		plugin string
		hash   dunlin.ModuleHash
		reason string
	}
	reports := make(chan report, 8)
	b := newBench(t, plugins.Config{OnBad: func(_ context.Context, tn dunlin.Tenant, p string, h dunlin.ModuleHash, why string) {
		reports <- report{tn, p, h, why}
	}})
	st := b.stage(plugin(code(unreachable)).build(), "")
	st.Plugin, st.Name = "the-stage", "cold-chain"
	other := batchOf(1)
	other[0].Tenant = "other"
	process(t, b, st, t0, other...)
	for i := range 6 {
		w := raw(fmt.Sprint("device-", i), "x")
		process(t, b, st, t0+dunlin.Time(i), w)
		if refused := strings.HasPrefix(w.Outcome.Failure, "not tried: this version of the plugin failed on 5 devices"); refused != (i == 5) {
			t.Errorf("device %d: %q", i, w.Outcome.Failure)
		}
	}
	got := <-reports
	if got.plugin != "cold-chain" || got.tenant != dunlin.DefaultTenant || got.hash != st.Hash ||
		!strings.Contains(got.reason, "failed on 5 devices and on 5 of 5 inputs") || !strings.Contains(got.reason, "trap: unreachable") {
		t.Errorf("%+v", got)
	}
	if process(t, b, st, t0+6, other...); other[0].Outcome.Failure != "" {
		t.Errorf("the other tenant: %q", other[0].Outcome.Failure)
	}
	next := batchOf(2)
	process(t, b, b.stage(plugin(nil).build(), ""), t0+7, next...) // the version before
	if next[1].Outcome.Failure != "" {
		t.Error(next[1].Outcome.Failure)
	}
	w := raw("device-9", "x")
	if process(t, b, st, t0+70e6, w); !strings.HasPrefix(w.Outcome.Failure, "trap: unreachable") {
		t.Errorf("somebody activated it again: %q", w.Outcome.Failure)
	}
	if len(reports) > 0 {
		t.Errorf("another report: %+v", <-reports)
	}
}

// What a plugin says itself is no fault of its version.
func TestAnErrorIsNoFaultOfTheVersion(t *testing.T) {
	b := newBench(t, plugins.Config{OnBad: func(context.Context, dunlin.Tenant, string, dunlin.ModuleHash, string) { t.Error("reported") }})
	m := plugin(code(i64c(-1<<63|dataAt<<32|5), returnOp))
	m.data = []byte("sorry")
	st := b.stage(m.build(), "")
	for i := range 20 {
		w := raw(fmt.Sprint("device-", i), "x")
		if process(t, b, st, t0, w); w.Outcome.Failure != "plugin: sorry" {
			t.Errorf("%q", w.Outcome.Failure)
		}
	}
}

// A batch that is honest work is split rather than stopped, as soon as it is known what an input takes.
func TestLargeBatchesAreSplit(t *testing.T) {
	// A raw input counts down from 300,000: half a millisecond or so.
	b := newBench(t, plugins.Config{})
	st := b.stage(plugin(code(i64c(300_000), set(8), loop, void, get(8), i64c(1), 0x7d, 0x22, 8, i64c(0), 0x55, brIf, 0, end)).build(), "")
	st.Plugin = "worker"
	process(t, b, st, t0, raw("first", "x"))
	for round := range 3 {
		var works []*dunlin.Work
		for i := range 60 {
			works = append(works, raw(fmt.Sprint("device-", i), "x"))
		}
		process(t, b, st, t0+dunlin.Time(round), works...)
		for _, w := range works {
			if w.Outcome.Failure != "" {
				t.Fatalf("round %d: %s: %q", round, w.Device, w.Outcome.Failure)
			}
		}
	}
}

// Instances of all plugins have so much memory together and no more: idle ones make room, and without any there is a reason.
func TestInstancesShareTheirMemory(t *testing.T) {
	b := newBench(t, plugins.Config{Workers: 1, Limits: plugins.Limits{InstanceBytes: 9 << 20}}) // two of 4 MiB
	for i := range 6 {
		st := b.stage(plugin(nil).build(), fmt.Sprintf(`{"n":%d}`, i))
		works := batchOf(2)
		if process(t, b, st, t0, works...); works[1].Outcome.Failure != "" {
			t.Errorf("plugin %d: %q", i, works[1].Outcome.Failure)
		}
	}
	big := plugin(nil)
	big.memory = code(0, uleb(160))
	works := batchOf(2)
	if process(t, b, b.stage(big.build(), ""), t0, works...); !strings.HasPrefix(works[1].Outcome.Failure, "no memory: ") {
		t.Errorf("10 MiB: %q", works[1].Outcome.Failure)
	}
	if process(t, b, b.stage(plugin(nil).build(), ""), t0, works...); works[1].Outcome.Failure != "" {
		t.Errorf("after it: %q", works[1].Outcome.Failure)
	}
}

// The allowance of log lines is the domain's: another domain with the same plugin has its own.
func TestLogLinesAreTheDomains(t *testing.T) {
	b := newBench(t, plugins.Config{Limits: plugins.Limits{LogLinesPerSecond: 2}})
	records := []byte("\x0d\x00\x00\x00\x05\x01\x01\x00hello\x00\x00\x00")
	m := plugin(emit(len(records)))
	m.data = records
	st := b.stage(m.build(), "")
	for i, c := range []struct {
		domain dunlin.DomainID
		want   int
	}{{"a", 1}, {"a", 1}, {"a", 0}, {"b", 1}} {
		w := raw("talker", "x")
		if err := b.Process(c.domain, st, 0, t0, []*dunlin.Work{w}); err != nil || len(w.Outcome.Logs) != c.want {
			t.Errorf("call %d: %v, %q, %q", i, err, w.Outcome.Logs, w.Outcome.Failure)
		}
	}
}
