package sdk

import "time"

// Time is a moment in microseconds since the Unix epoch, UTC. Zero means "not given".
type Time int64

// Add returns t+d, d cut to whole microseconds.
func (t Time) Add(d time.Duration) Time { return t + Time(d.Microseconds()) }

// Sub returns t−u.
func (t Time) Sub(u Time) time.Duration { return time.Duration(t-u) * time.Microsecond }

// Std converts to a time.Time in UTC.
func (t Time) Std() time.Time { return time.UnixMicro(int64(t)).UTC() }
