package client

import (
	"context"
	"fmt"
	"net/http"
)

// LetterID names the dead letter: "device/stage/seq".
func (l *DeadLetter) LetterID() string { return fmt.Sprintf("%s/%d/%d", l.Device, l.Stage, l.Seq) }

// ReplayLetter hands a dead letter's input, by its id, to the plugin's present version as a new turn. The letter is gone if that
// succeeds; otherwise again is why the plugin failed.
func (c *Client) ReplayLetter(ctx context.Context, id string) (again string, err error) {
	var out struct {
		Succeeded bool   `json:"succeeded"`
		Reason    string `json:"reason"`
	}
	_, err = c.do(ctx, request{method: http.MethodPost, path: letterPath(id) + "/replay"}, &out)
	return out.Reason, err
}

// DropLetter removes a dead letter, by its id.
func (c *Client) DropLetter(ctx context.Context, id string) error {
	_, err := c.do(ctx, request{method: http.MethodDelete, path: letterPath(id)}, nil)
	return err
}
