package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dunlin-iot/dunlin"
)

// replayer is who asks the past, or a 404.
func (g *Gateway) replayer() (dunlin.Replayer, error) {
	if g.deps.Replay == nil {
		return nil, fmt.Errorf("%w: this node can't ask the past", dunlin.ErrNotFound)
	}
	return g.deps.Replay, nil
}

// inputView is one input of a turn.
type inputView struct {
	Kind     string       `json:"kind" enum:"telemetry,raw,timer,result,lifecycle,other"`
	Received dunlin.Time  `json:"received" format:"date-time" doc:"Of a timer: when it was due"`
	Sender   string       `json:"sender,omitempty" doc:"Who sent it, if not the device itself"`
	Skewed   bool         `json:"skewed,omitempty" doc:"The device's clock was off by more than its domain allows"`
	Records  []recordView `json:"records,omitempty" nullable:"false"`
	Format   uint16       `json:"format,omitempty" doc:"CoAP content format of a payload"`
	Payload  []byte       `json:"payload,omitempty"`
	Timer    string       `json:"timer,omitempty" doc:"Name of the timer, or id of the command that this is the result of"`
}

func inputViewOf(in *dunlin.Input) inputView {
	kinds := map[dunlin.InputKind]string{dunlin.InputTelemetry: "telemetry", dunlin.InputRaw: "raw", dunlin.InputTimer: "timer",
		dunlin.InputResult: "result", dunlin.InputLifecycle: "lifecycle"}
	v := inputView{Kind: kinds[in.Kind], Received: in.Received, Sender: in.Sender, Skewed: in.Flags&dunlin.FlagSkewed != 0, Payload: in.Payload, Timer: in.Timer}
	if v.Kind == "" {
		v.Kind = "other"
	}
	if len(in.Payload) > 0 {
		v.Format = uint16(in.Format)
	}
	for i := range in.Records {
		r := &in.Records[i]
		v.Records = append(v.Records, recordView{Metric: r.Metric, Unit: r.Unit, Time: r.Time, Value: value{r.Value()}})
	}
	return v
}

// explanationView tells how an alert came about.
type explanationView struct {
	Alert      alertView       `json:"alert" doc:"As it is now"`
	At         dunlin.Time     `json:"at" format:"date-time" doc:"When the turn ran"`
	Shard      dunlin.ShardID  `json:"shard" doc:"Where its entry is"`
	Index      uint64          `json:"index" doc:"Of its entry"`
	Seq        uint64          `json:"seq" doc:"Sequence number of the first input"`
	Inputs     []inputView     `json:"inputs" nullable:"false" doc:"Of the turn"`
	Input      int             `json:"input" doc:"Which of them did it, from 0"`
	Stage      int             `json:"stage" doc:"Place in the domain's pipeline, from 0; -1: not known"`
	Name       string          `json:"name,omitempty" doc:"Of the stage"`
	Hash       string          `json:"hash" doc:"Of the module, or the rules, that ran"`
	Plugin     string          `json:"plugin,omitempty"`
	Version    string          `json:"version,omitempty" doc:"What the plugin's author calls the module"`
	Config     json.RawMessage `json:"config,omitempty" doc:"As the domain has it now"`
	Rules      json.RawMessage `json:"rules,omitempty"`
	Before     []byte          `json:"before" doc:"The plugin's state of the device before the turn"`
	After      []byte          `json:"after" doc:"And after it"`
	StateFrom  string          `json:"state_from" doc:"log: as it was written; rebuilt: by running recorded turns"`
	Rebuilt    dunlin.Time     `json:"rebuilt,omitzero" format:"date-time" doc:"The first of these turns"`
	Turns      int             `json:"turns" doc:"How many were run"`
	Whole      bool            `json:"whole,omitempty" doc:"They begin with the device's first input"`
	Same       bool            `json:"same" doc:"Running the turn again, just now, came to the same"`
	Difference string          `json:"difference,omitempty" doc:"What it came to otherwise"`
	Again      []alertView     `json:"again" nullable:"false" doc:"The alerts that it made just now"`
	Logs       []string        `json:"logs,omitempty" nullable:"false" doc:"What the plugin said"`
	Fuel       uint64          `json:"fuel"`
}

func explanationViewOf(x *dunlin.Explanation) *explanationView {
	v := &explanationView{Alert: alertViewOf(&x.Alert), At: x.At, Shard: x.Shard, Index: x.Index, Seq: x.Seq, Input: x.Input, Stage: x.Stage, Name: x.Name,
		Hash: x.Hash.String(), Plugin: x.Plugin, Version: x.Version, Config: x.Config, Rules: x.Rules, Before: x.Before, After: x.After, StateFrom: x.StateFrom,
		Rebuilt: x.Rebuilt, Turns: x.Turns, Whole: x.Whole, Same: x.Same, Difference: x.Difference, Again: alertViewsOf(x.Again), Logs: x.Logs, Fuel: x.Fuel,
		Inputs: make([]inputView, len(x.Inputs))}
	for i := range x.Inputs {
		v.Inputs[i] = inputViewOf(&x.Inputs[i])
	}
	return v
}

type explanationOutput struct {
	Body *explanationView
}

func (a *api) registerExplain() {
	question(a, huma.Operation{OperationID: "explain-alert", Method: http.MethodGet, Path: "/v1/alerts/explanation", Tags: []string{"alerts"},
		Summary: "Explain how an alert came about",
		Description: "The turn that raised it, run again just now: its inputs, the module, the state before and after. " +
			"410: retention has dropped its entry."},
		func(ctx context.Context, c *call, in *struct {
			ReadInput
			ID string `query:"id" required:"true" maxLength:"300" doc:"The alert's id: device/rule/key/raised_seq"`
		}) (*explanationOutput, error) {
			past, err := a.g.replayer()
			if err != nil {
				return nil, err
			}
			x, err := past.Explain(ctx, c.tenant(), in.ID)
			if err != nil {
				return nil, err
			}
			return &explanationOutput{Body: explanationViewOf(x)}, nil
		})
}
