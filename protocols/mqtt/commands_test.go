package mqtt

import (
	"fmt"
	"strings"
	"testing"

	"github.com/dunlin-iot/dunlin"
)

// TestMosquittoCommands: a device of each version gets its commands with mosquitto_sub, also what was asked of it while it was
// away, and answers with mosquitto_pub; an application gets what plugins publish.
func TestMosquittoCommands(t *testing.T) {
	tool(t, "mosquitto_sub")
	j := newJournal(4)
	s := &shelf{auto: true}
	g := serve(t, Config{}, Deps{Ingestor: s, Feed: j, Auth: closedAuth{}})
	key := dunlin.DeviceKey{Tenant: "default", Device: "d1"}
	for i, version := range []string{"mqttv311", "mqttv5"} {
		t.Run(version, func(t *testing.T) {
			seq := uint64(10 * (i + 1))
			ask := func(seq uint64, name string) {
				j.add(dunlin.Change{DeviceKey: key, Version: seq, Commands: []dunlin.Command{{ID: dunlin.CommandID(seq, 0), Name: name,
					Payload: []byte(`{"n":1}`), Format: dunlin.FormatJSON}},
					Publish: []dunlin.Publication{{Topic: "door/state", Payload: []byte("open"), Format: dunlin.FormatText}}})
			}
			session := []string{"-V", version, "-i", "dev-" + version, "-c", "-q", "1", "-u", "d1", "-P", "secret", "-t", "d/d1/c/+/req/+"}
			if version == "mqttv5" {
				session = append(session, "-x", "60")
			}
			if out, err := mosquitto(t, g, "mosquitto_sub", append(session, "-E")...); err != nil { // subscribes and leaves
				t.Fatalf("%v: %s", err, out)
			}
			ask(seq, "reboot")
			ask(seq+1, "blink")
			format := "%t %p"
			if version == "mqttv5" {
				format = "%t %p %R %D %C"
			}
			out, err := mosquitto(t, g, "mosquitto_sub", append(session, "-F", format, "-C", "2", "-W", "5")...)
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			lines := strings.Split(strings.TrimSpace(out), "\n")
			for k, name := range []string{"reboot", "blink"} {
				id := dunlin.CommandID(seq+uint64(k), 0)
				want := fmt.Sprintf(`d/d1/c/%s/req/%s {"n":1}`, id, name)
				if version == "mqttv5" {
					want += fmt.Sprintf(" d/d1/c/%s/res %s application/json", id, id)
				}
				if k >= len(lines) || strings.TrimSpace(lines[k]) != want {
					t.Fatalf("got %q, want %q", lines, want)
				}
			}
			answer := strings.Replace(strings.Fields(lines[0])[0], "/req/reboot", "/res", 1)
			if out, err := mosquitto(t, g, "mosquitto_pub", "-V", version, "-q", "1", "-u", "d1", "-P", "secret", "-t", answer, "-m", "done"); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			want := fmt.Sprintf("result of %s: %q as 42", dunlin.CommandID(seq, 0), "done")
			eventually(t, "the answer is there", func() bool {
				got := s.lines()
				return len(got) == 1 && strings.HasSuffix(got[0], want)
			})
		})
	}
	t.Run("application", func(t *testing.T) {
		done := make(chan string, 1)
		go func() {
			out, _ := mosquitto(t, g, "mosquitto_sub", "-q", "1", "-u", "app", "-P", "secret", "-t", "p/+/door/#", "-t", "d/+/c/#", "-v", "-C", "2", "-W", "8")
			done <- out
		}()
		eventually(t, "mosquitto_sub has subscribed", func() bool { return subscriptions(g) == 4 })
		j.add(dunlin.Change{DeviceKey: key, Version: 99, Commands: []dunlin.Command{{ID: "99-0", Name: "x"}},
			Publish: []dunlin.Publication{{Topic: "door/state", Payload: []byte("shut"), Format: dunlin.FormatText}}})
		if out := <-done; !strings.Contains(out, "d/d1/c/99-0/req/x") || !strings.Contains(out, "p/d1/door/state shut") {
			t.Errorf("got %q", out)
		}
	})
	t.Run("others", func(t *testing.T) {
		out, err := mosquitto(t, g, "mosquitto_sub", "-V", "mqttv5", "-u", "d2", "-P", "secret", "-t", "d/d1/c/#", "-C", "1", "-W", "1", "-d")
		if !strings.Contains(out, "135") && !strings.Contains(out, "denied") {
			t.Errorf("another device's commands: %v: %s", err, out)
		}
	})
}
