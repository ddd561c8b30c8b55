package store

import (
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/dunlin-iot/dunlin"
)

// A cursor that no page gave is an error, not an empty page or the first one again.
func TestCursorsAreOfPages(t *testing.T) {
	s := openTest(t, small(vfs.NewMem(), 1)).State()
	for _, at := range []dunlin.Time{timeMin, -1, 0, 1, 1_700_000_000_000_000, timeMax} {
		if got, err := parseMoment(moment(at)); err != nil || got != at {
			t.Errorf("moment %d is read as %d, %v", at, got, err)
		}
	}
	good := moment(fleetStart)
	changed := []byte(good)
	changed[1] ^= 1
	alert := pageCursor(cursorAlerts, []byte("position"))
	if _, err := s.Readings(0, dunlin.ReadingsQuery{Cursor: good}); err != nil {
		t.Errorf("a cursor of readings: %v", err)
	}
	if _, err := s.Alerts(nil, dunlin.AlertsQuery{Cursor: alert}); err != nil {
		t.Errorf("a cursor of alerts: %v", err)
	}
	bad := []string{"zzz", "?", "_", "AA", "AAAAAA", "cursor", string(changed), good[1:], good[:len(good)-1], good + "A"}
	for _, c := range append(bad, alert) {
		if _, err := s.Readings(0, dunlin.ReadingsQuery{Cursor: c}); !errors.Is(err, dunlin.ErrInvalid) {
			t.Errorf("readings after %q: got %v, want ErrInvalid", c, err)
		}
	}
	for _, c := range append(bad, good) {
		for _, device := range []dunlin.DeviceID{"", "a"} {
			if _, err := s.Alerts(nil, dunlin.AlertsQuery{Device: device, Cursor: c}); !errors.Is(err, dunlin.ErrInvalid) {
				t.Errorf("alerts of %q after %q: got %v, want ErrInvalid", device, c, err)
			}
		}
	}
}
