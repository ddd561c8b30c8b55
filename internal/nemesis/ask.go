package nemesis

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/sdk/client"
)

// client makes one of a node's API. A question is not repeated: the bench wants to see.
func (b *Bench) client(p *proc) *client.Client {
	c, err := client.New(p.addr(portHTTP), client.Options{HTTP: b.http, Retries: -1})
	if err != nil {
		panic(fmt.Sprintf("nemesis: address of %s: %v", p.name, err)) // it is the bench's own
	}
	return c
}

// healthy waits until every node that runs sees a cluster with all owners and all replicas.
func (b *Bench) healthy(ctx context.Context, max time.Duration) error {
	deadline := b.now() + max
	for {
		err := b.unhealthy(ctx)
		if err == nil {
			return nil
		}
		if b.now() > deadline {
			return fmt.Errorf("not healthy after %v: %w", max, err)
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

func (b *Bench) unhealthy(ctx context.Context) error {
	for _, p := range b.procs[:b.cfg.Nodes] {
		if !p.running() {
			return fmt.Errorf("%s does not run", p.name)
		}
		st, err := b.client(p).ClusterStatus(ctx)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", p.name, err)
		case !st.Healthy || st.Alive < b.cfg.Nodes || st.Owned < st.Shards || st.Full < st.Shards || len(st.Moves) > 0:
			return fmt.Errorf("%s sees %d of %d shards owned, %d full, %d of %d members alive, %d moves; %q", p.name, st.Owned, st.Shards, st.Full, st.Alive, st.Members,
				len(st.Moves), st.Problems)
		}
	}
	return nil
}

// leaders counts the shards that each member owns, and names the controller's node, as a node that answers tells it.
func (b *Bench) leaders(ctx context.Context) (owns map[string]int, controller string, err error) {
	err = b.anybody(ctx, 5*time.Second, func(c *client.Client) error {
		members, err := c.Members(ctx)
		if err != nil {
			return err
		}
		st, err := c.ClusterStatus(ctx)
		if err != nil {
			return err
		}
		owns = map[string]int{}
		for i := range members {
			owns[members[i].Name] = members[i].Leads
			if members[i].ID == st.Controller {
				controller = members[i].Name
			}
		}
		return nil
	})
	return owns, controller, err
}

// anybody asks node after node until one answers.
func (b *Bench) anybody(ctx context.Context, max time.Duration, ask func(*client.Client) error) error {
	deadline := b.now() + max
	for i := 0; ; i++ {
		p := b.procs[(i+int(b.now()/time.Second))%b.cfg.Nodes]
		err := ask(b.client(p))
		if err == nil || b.now() > deadline {
			return err
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// twin asks a node for a device's temperature, at level leader.
func (b *Bench) twin(ctx context.Context, p *proc, device string) (int64, error) {
	t, err := b.client(p).State(ctx, dunlin.DeviceID(device))
	var problem *client.Error
	if errors.As(err, &problem) && problem.Status == http.StatusNotFound {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	v, ok := t.Reported["temp"].Value.(float64)
	if !ok {
		return 0, nil
	}
	return scaled(v), nil
}

func scaled(v float64) int64 { return int64(math.Round(v * 10000)) }
