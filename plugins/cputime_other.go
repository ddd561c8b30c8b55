//go:build !linux

package plugins

import "time"

// givesWay says that giveWay does something.
const givesWay = false

// giveWay does nothing here.
func giveWay() {}

// threadTime returns 0: here it is the clock alone that measures.
func threadTime() (time.Duration, int) { return 0, 0 }
