package placement

import (
	"context"
	"time"
)

// until is a context that ends with a channel: calls come out of gRPC's goroutines, with no context of ours.
type until <-chan struct{}

// Deadline implements context.Context.
func (until) Deadline() (time.Time, bool) { return time.Time{}, false }

// Done implements context.Context.
func (u until) Done() <-chan struct{} { return u }

// Err implements context.Context.
func (u until) Err() error {
	select {
	case <-u:
		return context.Canceled
	default:
		return nil
	}
}

// Value implements context.Context.
func (until) Value(any) any { return nil }
