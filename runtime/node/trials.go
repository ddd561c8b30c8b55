package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/trial"
)

// methodTrial asks a node what it has counted of a trial, by the trial's id.
const methodTrial = "trial/counts"

// Trials are looked at every judgeEvery; a node that does not answer within countWait is left out of the sum.
const (
	judgeEvery = 2 * time.Second
	countWait  = 2 * time.Second
	banWait    = 30 * time.Second
)

// TrialCounts sums what the members have counted of a trial.
func (n *Node) TrialCounts(ctx context.Context, _ dunlin.Tenant, _, id string) (sum dunlin.TrialCounts, missing int, err error) {
	sum = n.trials.Counts(id)
	ctx, cancel := context.WithTimeout(ctx, countWait)
	defer cancel()
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, m := range n.cluster.MembersSeen() {
		if m.ID == n.identity.NodeID {
			continue
		}
		all.Go(func() {
			var c dunlin.TrialCounts
			answer, err := (*caller)(n).Call(ctx, m.ID, methodTrial, []byte(id))
			if err == nil {
				err = json.Unmarshal(answer, &c)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				missing++
				return
			}
			trial.Sum(&sum, &c)
		})
	}
	all.Wait()
	return sum, missing, nil
}

// serveTrial answers methodTrial.
func (n *Node) serveTrial(method string, body []byte) ([]byte, error) {
	if method != methodTrial {
		return nil, fmt.Errorf("%w: call %q", dunlin.ErrInvalid, method)
	}
	return json.Marshal(n.trials.Counts(string(body)))
}

// judge promotes candidates and takes them back as their gates say. All nodes count; the owner of the meta shard decides.
func (n *Node) judge(ctx context.Context) error {
	tick := time.NewTicker(judgeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		running := n.registry.Trials()
		ids := make(map[string]bool, len(running))
		for i := range running {
			ids[running[i].Trial.ID] = true
		}
		n.trials.Keep(ids)
		if _, owner := n.directory.Owned(dunlin.MetaShard); !owner {
			continue
		}
		for i := range running {
			if err := n.judgeOne(ctx, &running[i]); err != nil && ctx.Err() == nil {
				n.obs.Log.Warn("a trial can't be ended", "plugin", running[i].Name, "error", err)
			}
		}
	}
}

func (n *Node) judgeOne(ctx context.Context, p *dunlin.Plugin) error {
	counts, missing, err := n.TrialCounts(ctx, p.Tenant, p.Name, p.Trial.ID)
	if err != nil {
		return err
	}
	decision, why := trial.Judge(p.Trial, &counts, n.clock().Sub(p.Trial.Since))
	switch {
	case decision == trial.TakeBack:
		n.obs.Log.Warn("a plugin's candidate is taken back", "plugin", p.Name, "trial", string(p.Trial.Kind), "module", p.Trial.Hash.String(), "reason", why)
		_, err = n.registry.Ban(ctx, p.Tenant, p.Name, p.Trial.Hash, why)
	case decision == trial.Promote && missing == 0:
		n.obs.Log.Info("a plugin's candidate is promoted", "plugin", p.Name, "trial", string(p.Trial.Kind), "module", p.Trial.Hash.String(), "reason", why)
		_, err = n.registry.Activate(ctx, p.Tenant, p.Name, dunlin.Activation{Hash: p.Trial.Hash, By: "dunlin", Reason: "promoted: " + why}, p.Revision)
	}
	return err
}

// labels are a device's, for trials that select by them.
func (n *Node) labels(sh dunlin.ShardID, key dunlin.DeviceKey) map[string]string {
	row, ok, err := n.db.State().Row(sh, dunlin.TableDevices, key.String())
	if err != nil || !ok {
		return nil
	}
	var d dunlin.Device
	if json.Unmarshal(row, &d) != nil {
		return nil
	}
	return d.Labels
}

// bad takes a version out of use that keeps failing on this node.
func (n *Node) bad(ctx context.Context, t dunlin.Tenant, plugin string, hash dunlin.ModuleHash, reason string) {
	ctx, cancel := context.WithTimeout(ctx, banWait)
	defer cancel()
	_, err := n.router.Ban(ctx, t, plugin, hash, reason)
	if err != nil && !errors.Is(err, dunlin.ErrConflict) && ctx.Err() == nil { // a conflict: another node was faster
		n.obs.Log.Warn("a plugin version that keeps failing can't be taken out of use", "plugin", plugin, "module", hash.String(), "error", err)
	}
}
