package router

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// The questions. Their names and bodies are docs/formats/calls.md's.
const (
	methodTwin     = "ask/twin"
	methodReadings = "ask/readings"
	methodDevice   = "ask/device"
	methodAlerts   = "ask/alerts"
	methodLetters  = "ask/letters"
	methodDevices  = "ask/devices"
)

// askVersion is the version of questions and their answers.
const askVersion = 1

// question is what is asked, as JSON. Moments and spans are microseconds.
type question struct {
	Version  int              `json:"v"`
	Stale    int64            `json:"stale,omitempty"` // 0: level leader
	Shards   []dunlin.ShardID `json:"shards,omitempty"`
	Tenant   dunlin.Tenant    `json:"tenant,omitempty"`
	Device   dunlin.DeviceID  `json:"device,omitempty"`
	Domain   dunlin.DomainID  `json:"domain,omitempty"`
	Prefix   string           `json:"prefix,omitempty"`
	Metrics  []string         `json:"metrics,omitempty"`
	From     int64            `json:"from,omitempty"`
	To       int64            `json:"to,omitempty"`
	Bucket   int64            `json:"bucket,omitempty"` // nanoseconds
	Newest   bool             `json:"newest,omitempty"`
	State    uint8            `json:"state,omitempty"`
	Active   bool             `json:"active,omitempty"`
	Severity uint8            `json:"severity,omitempty"`
	Limit    int              `json:"limit,omitempty"`
	Cursor   string           `json:"cursor,omitempty"`
}

func (q *question) key() dunlin.DeviceKey {
	return dunlin.DeviceKey{Tenant: q.Tenant, Device: q.Device}
}

// ask sends a question to a node; it may take AskMax.
func (r *Router) ask(ctx context.Context, to dunlin.NodeID, method string, q question) ([]byte, error) {
	q.Version, q.Stale = askVersion, dunlin.ReadLevelOf(ctx).Stale.Microseconds()
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, r.cfg.AskMax, errSilent(to))
	defer cancel()
	r.met.asked.Inc()
	reply, err := r.deps.Caller.Call(ctx, to, method, body)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return reply, err
}

func errSilent(node dunlin.NodeID) error {
	return fmt.Errorf("%w: node %s does not answer", dunlin.ErrUnavailable, node)
}

// serveAsk answers a question, makes a change of the registry, or hands over a module.
func (r *Router) serveAsk(ctx context.Context, from dunlin.NodeID, method string, body []byte) ([]byte, error) {
	switch room, _, _ := strings.Cut(method, "/"); room {
	case "reg":
		return r.serveChange(ctx, from, method, body)
	case methodSeen:
		return nil, r.readable(ctx, dunlin.MetaShard)
	case "mod":
		if r.deps.Modules != nil {
			return r.deps.Modules.serve(ctx, from, method, body)
		}
	case "ask":
		var q question
		if err := json.Unmarshal(body, &q); err != nil || q.Version != askVersion {
			return nil, fmt.Errorf("%w: question %s of version %d", dunlin.ErrInvalid, method, q.Version)
		}
		ctx = dunlin.WithReadLevel(ctx, dunlin.ReadLevel{Stale: time.Duration(q.Stale) * time.Microsecond})
		return r.answerAsk(ctx, method, &q)
	}
	return nil, fmt.Errorf("%w: call %q", dunlin.ErrInvalid, method)
}

func (r *Router) answerAsk(ctx context.Context, method string, q *question) ([]byte, error) {
	switch method {
	case methodTwin, methodReadings, methodDevice:
		sh := r.cfg.ShardOf(q.key())
		if err := r.readable(ctx, sh); err != nil {
			return nil, err
		}
		return r.answerDevice(ctx, method, sh, q)
	}
	for _, sh := range q.Shards {
		if int(sh) >= r.cfg.Shards {
			return nil, fmt.Errorf("%w: shard %d", dunlin.ErrInvalid, sh)
		}
	}
	switch method {
	case methodAlerts:
		page, missing, err := r.alertsHere(ctx, q.Shards, q.alerts())
		if err != nil {
			return nil, err
		}
		return appendAlerts(page, missing)
	case methodLetters:
		letters, missing, err := r.lettersHere(ctx, q.Shards, q.letters())
		if err != nil {
			return nil, err
		}
		return appendLetters(letters, missing)
	case methodDevices:
		return r.answerDevices(ctx, q)
	}
	return nil, fmt.Errorf("%w: question %q", dunlin.ErrInvalid, method)
}

// answerDevices lists devices; a page that is too large is made shorter.
func (r *Router) answerDevices(ctx context.Context, q *question) ([]byte, error) {
	for dq := q.devices(); ; dq.Limit /= 2 {
		page, missing, err := r.devicesHere(ctx, q.Shards, dq)
		if err != nil {
			return nil, err
		}
		page.Missing = missing
		b, err := json.Marshal(page)
		if err != nil || len(b) <= replyBytesMax || dq.Limit <= 1 {
			return b, err
		}
	}
}

// readable returns once this node's replica of the shard is as fresh as the context asks.
func (r *Router) readable(ctx context.Context, sh dunlin.ShardID) error {
	if r.alone(sh) {
		return nil
	}
	lag, ok := r.deps.Reads.Fresh(sh)
	if !ok {
		return errForeign
	}
	if level := dunlin.ReadLevelOf(ctx); level.Stale > 0 && lag <= level.Stale {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, r.cfg.AskMax, errNobody)
	defer cancel()
	err := r.deps.Reads.ReadIndex(ctx, sh)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return err
}

// alone reports that this node owns the shard and nobody else votes in it: then nobody else can have acknowledged anything, and
// what this node has acknowledged it has applied before.
func (r *Router) alone(sh dunlin.ShardID) bool {
	if _, ok := r.deps.Local.Owned(sh); !ok {
		return false
	}
	voters := r.deps.Owners.Voters(sh)
	return len(voters) == 1 && voters[0] == r.cfg.Self
}

// here reports whether this node has a replica of the shard that can be read.
func (r *Router) here(sh dunlin.ShardID) bool {
	if _, ok := r.deps.Local.Owned(sh); ok {
		return true
	}
	_, ok := r.deps.Reads.Fresh(sh)
	return ok
}

// final reports whether an error is an answer: asking somebody else would not give another.
func final(err error) bool {
	return err == nil || !errors.Is(err, dunlin.ErrUnavailable) && !errors.Is(err, dunlin.ErrNotOwner) && !errors.Is(err, dunlin.ErrOverloaded) &&
		!errors.Is(err, context.DeadlineExceeded)
}

// others returns the other nodes to ask about a shard: its owner, then the rest of its replicas.
func (r *Router) others(sh dunlin.ShardID) (nodes []dunlin.NodeID) {
	owner, _, known := r.deps.Owners.Owner(sh)
	if known && owner != r.cfg.Self {
		nodes = append(nodes, owner)
	}
	for _, n := range r.deps.Owners.Replicas(sh) {
		if n != r.cfg.Self && !(known && n == owner) {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// asksOfOne is how many nodes are asked about one device.
const asksOfOne = 2

// one answers a question about one shard: here if this node's replica can, else by asking one of the others, or two.
func one[T any](ctx context.Context, r *Router, sh dunlin.ShardID, here func() (T, error), there func(dunlin.NodeID) (T, error)) (T, error) {
	err := r.readable(ctx, sh)
	if err == nil {
		return here()
	}
	var none T
	asked := 0
	for _, node := range r.others(sh) {
		if asked == asksOfOne || ctx.Err() != nil {
			break
		}
		asked++
		v, e := there(node)
		if final(e) {
			return v, e
		}
		err = e
	}
	if ctx.Err() != nil {
		return none, context.Cause(ctx)
	}
	if errors.Is(err, dunlin.ErrUnavailable) || errors.Is(err, dunlin.ErrOverloaded) {
		return none, err
	}
	return none, fmt.Errorf("%w: shard %d: %w", dunlin.ErrUnavailable, sh, err)
}
