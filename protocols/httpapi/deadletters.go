package httpapi

import (
	"context"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dunlin-iot/dunlin"
)

// letterPath names a dead letter: its id is a path.
type letterPath struct {
	Device string `path:"device" maxLength:"64"`
	Stage  int    `path:"stage" minimum:"0" maximum:"255"`
	Seq    uint64 `path:"seq"`
}

func (p *letterPath) id() string {
	return p.Device + "/" + strconv.Itoa(p.Stage) + "/" + strconv.FormatUint(p.Seq, 10)
}

type replayedView struct {
	Succeeded bool   `json:"succeeded" doc:"The plugin took the input, and the letter is gone"`
	Reason    string `json:"reason,omitempty" doc:"Why the plugin failed again; the letter stays"`
}

type replayedOutput struct {
	Body replayedView
}

func (a *api) registerLetters() {
	operation(a, huma.Operation{OperationID: "replay-deadletter", Method: http.MethodPost, Path: "/v1/deadletters/{device}/{stage}/{seq}/replay", Tags: []string{"plugins"},
		Summary: "Hand a dead letter's input to the present version, as a new turn",
		Description: "The device's readings are the same ones when they come again. 409: the input was no message of the device " +
			"(a timer, a command's result), and can't come again."},
		func(ctx context.Context, c *call, in *letterPath) (*replayedOutput, error) {
			past, err := a.letters(c, in)
			if err != nil {
				return nil, err
			}
			again, err := past.ReplayLetter(ctx, c.tenant(), in.id())
			if err != nil {
				return nil, err
			}
			return &replayedOutput{Body: replayedView{Succeeded: again == "", Reason: again}}, nil
		})
	operation(a, huma.Operation{OperationID: "drop-deadletter", Method: http.MethodDelete, Path: "/v1/deadletters/{device}/{stage}/{seq}", Tags: []string{"plugins"},
		Summary: "Remove a dead letter"},
		func(ctx context.Context, c *call, in *letterPath) (*struct{}, error) {
			past, err := a.letters(c, in)
			if err != nil {
				return nil, err
			}
			return nil, past.DropLetter(ctx, c.tenant(), in.id())
		})
}

// letters is who changes dead letters, if the path names one.
func (a *api) letters(c *call, in *letterPath) (dunlin.Replayer, error) {
	if err := dunlin.DeviceID(in.Device).Validate(); err != nil {
		return nil, invalidValue("path.device", err.Error(), in.Device)
	}
	return a.g.replayer()
}
