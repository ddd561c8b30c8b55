package nemesis

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// Failure is something that must not be.
type Failure struct {
	Round int    `json:"round"`
	Fault string `json:"fault"`
	Kind  string `json:"kind"`
	Text  string `json:"text"`
}

// FaultReport is what came of all rounds of one fault.
type FaultReport struct {
	Fault  string `json:"fault"`
	Rounds int    `json:"rounds"`
	count
	PauseP50 time.Duration `json:"pause_p50_ns"` // of a device's longest span without ack, less the calm's
	PauseMax time.Duration `json:"pause_max_ns"`
	pauses   []time.Duration
}

// Report is what came of a run.
type Report struct {
	Seed     uint64         `json:"seed"`
	Nodes    int            `json:"nodes"`
	Rounds   int            `json:"rounds"`
	Isolated bool           `json:"isolated"`
	Seconds  float64        `json:"seconds"`
	Faults   []*FaultReport `json:"faults"`
	Total    count          `json:"total"`
	Calm     time.Duration  `json:"calm_gap_ns"` // median of a device's longest span between acks without fault
	Failures []Failure      `json:"failures"`
	Notes    []string       `json:"notes"`
	Dir      string         `json:"dir,omitempty"` // logs and data, if they were kept
	calm     []time.Duration
}

func (r *Report) row(name string) *FaultReport {
	for _, f := range r.Faults {
		if f.Fault == name {
			return f
		}
	}
	f := &FaultReport{Fault: name}
	r.Faults = append(r.Faults, f)
	return f
}

func (f *FaultReport) measured(pauses []time.Duration) {
	f.pauses = append(f.pauses, pauses...)
	slices.Sort(f.pauses)
	f.PauseP50, f.PauseMax = f.pauses[len(f.pauses)/2], f.pauses[len(f.pauses)-1]
}

// Print writes the table.
func (r *Report) Print(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "fault\trounds\tacked\tlost\tduplicated\talerts missing\talerts twice\treads\tnot linearizable\tactivations\towned twice\tstates\tdiverged\tpause p50\tpause max\t")
	row := func(name string, rounds int, c count, p50, most string) {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t\n", name, rounds, c.Acked, c.Lost, c.Duplicated, c.Missing, c.Twice, c.Reads, c.Stale,
			c.Activations, c.OwnedTwice, c.States, c.Diverged, p50, most)
	}
	seconds := func(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
	for _, f := range r.Faults {
		row(f.Fault, f.Rounds, f.count, seconds(f.PauseP50), seconds(f.PauseMax))
	}
	row("all", r.Rounds, r.Total, "", "")
	_ = w.Flush() // the writer below it tells
	fmt.Fprintf(out, "\nseed %d, %d nodes, %.0f s; without a fault the longest gap between a device's acks was %s (median)\n", r.Seed, r.Nodes, r.Seconds, seconds(r.Calm))
	t := &r.Total
	fmt.Fprintf(out, "%d claims of %d ownerships were heard, %d activations logged; all replicas of %d shards were compared, %d could not be; %d hashes were equal to another's\n",
		t.Claims, t.Reigns, t.Activations, t.States, t.Uncompared, t.Hashes)
	if t.Nameless > 0 {
		fmt.Fprintf(out, "%d activations were of processes that ended before they could be asked who they are\n", t.Nameless)
	}
	if !r.Isolated {
		fmt.Fprintln(out, "nodes stood on loopback addresses: faults of network and disk were left out")
	}
	for _, n := range r.Notes {
		fmt.Fprintln(out, "note:", n)
	}
	for _, f := range r.Failures {
		fmt.Fprintf(out, "FAILED round %d (%s), %s: %s\n", f.Round, f.Fault, f.Kind, f.Text)
	}
	if r.Dir != "" {
		fmt.Fprintln(out, "logs and data are in", r.Dir)
	}
}
