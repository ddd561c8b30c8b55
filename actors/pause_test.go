package actors

import "time"

// pause lets others run for a moment: of the bubble's time in a synctest, of ours elsewhere.
func pause() { <-time.After(100 * time.Microsecond) }

// after lets the bubble's clock go on by d.
func after(d time.Duration) { <-time.After(d) }
