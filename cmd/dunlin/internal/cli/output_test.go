package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/sdk/client"
)

// A device must not be able to write on its operator's terminal.
func TestTextsOfDevicesAreNotObeyed(t *testing.T) {
	for in, want := range map[string]string{
		"21.5 °C": "21.5 °C", "": "", "a\x1b[31mred": `a\x1b[31mred`, "one\ntwo\t": `one\ntwo\t`, "\u202egnp": `\u202egnp`, "\u009bA": `\u009bA`,
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
	var b bytes.Buffer
	row(&b, "a\x1b[2J", "")
	tailLine(&b, &client.Event{Reading: &client.ReadingEvent{Seq: 1, Records: []client.Reading{{Metric: "s", Value: "\x1b]0;x\a"}}}})
	if strings.ContainsAny(b.String(), "\x1b\a") {
		t.Errorf("%q", b.String())
	}
}

func TestTailTellsOfAClockThatIsOffAndOfDevices(t *testing.T) {
	at, off := dunlin.TimeOf(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)), dunlin.TimeOf(time.Date(2017, 1, 1, 0, 0, 0, 0, time.UTC))
	var b bytes.Buffer
	tailLine(&b, &client.Event{Reading: &client.ReadingEvent{Seq: 7, Received: at, Skewed: true, Records: []client.Reading{{Metric: "t", Time: off, Value: 5.0}}}})
	tailLine(&b, &client.Event{Device: &client.DeviceEvent{Device: dunlin.Device{ID: "d-1", Domain: "x", Revision: 1, UpdatedAt: at}}})
	want := "2026-01-02 03:04:05Z  #7  t=5  (its clock is off: 2017-01-01 00:00:00Z)\n2026-01-02 03:04:05Z  device d-1 is registered, domain x\n"
	if got := b.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}
