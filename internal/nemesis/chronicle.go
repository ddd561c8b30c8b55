package nemesis

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/sdk/client"
)

// chronicle follows one node's event stream, over all its restarts: which turn of a device took which reading. With it a turn too
// many can be told from the others.
type chronicle struct {
	b  *Bench
	mu struct {
		sync.Mutex
		turns map[string]map[uint64]turn // by device and seq
	}
}

// turn is a reading as it was committed.
type turn struct {
	at       int64 // the reading's own time, Unix milliseconds
	value    int64
	received dunlin.Time
}

func (t turn) String() string {
	return fmt.Sprintf("reading of %d, value %d, received %s", t.at, t.value, t.received.Std().UTC().Format("15:04:05.000"))
}

// run follows until ctx ends. The stream begins before the first reading is sent.
func (c *chronicle) run(ctx context.Context) {
	cl, err := client.New(c.b.procs[0].addr(portHTTP), client.Options{})
	if err != nil {
		panic(fmt.Sprintf("nemesis: address of a node: %v", err)) // it is the bench's own
	}
	defer cl.Close()
	for e, err := range cl.Events(ctx, client.EventsQuery{Types: []string{"reading"}}) {
		if err != nil || e.Reading == nil || len(e.Reading.Records) == 0 {
			continue
		}
		r := e.Reading.Records[0]
		v, ok := r.Value.(float64)
		if n, isNumber := r.Value.(json.Number); isNumber {
			v, err = n.Float64()
			ok = err == nil
		}
		if !ok {
			continue
		}
		c.mu.Lock()
		of := c.mu.turns[string(e.Reading.Device)]
		if of == nil {
			of = map[uint64]turn{}
			c.mu.turns[string(e.Reading.Device)] = of
		}
		of[e.Reading.Seq] = turn{r.Time.Std().UnixMilli(), scaled(v), e.Reading.Received}
		c.mu.Unlock()
	}
}

// twice lists the turns of a device, behind from, that took a reading which another turn took before, with what the device did to
// get the reading in.
func (c *chronicle) twice(device string, from uint64, all []write) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := map[int64]uint64{}
	var lines []string
	of := c.mu.turns[device]
	seqs := make([]uint64, 0, len(of))
	for seq := range of {
		seqs = append(seqs, seq)
	}
	slices.Sort(seqs)
	for _, seq := range seqs {
		t := of[seq]
		if was, ok := first[t.at]; ok && seq > from {
			lines = append(lines, fmt.Sprintf("turn %d took the %v again; turn %d had it %s earlier, received %s", seq, t, was, t.received.Sub(of[was].received),
				of[was].received.Std().UTC().Format("15:04:05.000")))
			for _, w := range all {
				if w.at == t.at {
					lines = append(lines, "  "+strings.Join(w.story, "; "))
				}
			}
		}
		first[t.at] = seq
	}
	return strings.Join(lines, "\n    ")
}
