package coap

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// TestLibcoap runs libcoap's client, which nobody here wrote, against a node.
func TestLibcoap(t *testing.T) {
	tool := ""
	for _, name := range []string{"coap-client", "coap-client-notls", "coap-client-openssl"} {
		if path, err := exec.LookPath(name); err == nil {
			tool = path
			break
		}
	}
	if tool == "" {
		t.Skip("no coap-client is installed (Debian: libcoap3-bin)")
	}
	big := fridge()
	for i := range 100 {
		big.Reported["metric-"+string(rune('a'+i%26))+strings.Repeat("x", i/26)] = dunlin.Reported{Value: float64(i), At: testNow}
	}
	r := &rooms{twins: map[dunlin.DeviceID]*dunlin.Twin{"fridge": fridge(), "big": big}, receipt: receipts,
		secrets: map[string]dunlin.Principal{"fridge:s3cret": {Kind: dunlin.PrincipalDevice, Tenant: "default", ID: "fridge"}}}
	open := serve(t, Config{Open: true}, r).Addr().String()
	closed := serve(t, Config{}, r).Addr().String()
	upload := filepath.Join(t.TempDir(), "upload")
	if err := os.WriteFile(upload, []byte(strings.Repeat(" ", 3000)+reading), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, tool, append([]string{"-v", "0", "-B", "5"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	for _, c := range []struct {
		name string
		args []string
		want string // all of what the client prints, or a part that starts with …
	}{
		{"SenML, confirmable", []string{"-m", "post", "-t", "110", "-e", reading, "coap://" + open + "/d/fridge/t"}, ""},
		{"a number, non-confirmable", []string{"-N", "-m", "post", "-e", "21.5", "coap://" + open + "/d/fridge/t"}, ""},
		{"broken SenML", []string{"-m", "post", "-t", "110", "-e", "[{", "coap://" + open + "/d/fridge/t"}, "…4.00"},
		{"wrong path", []string{"-m", "post", "-e", "1", "coap://" + open + "/d/fridge/x"}, "4.04 no such resource"},
		{"unknown device", []string{"-m", "post", "-e", "1", "coap://" + open + "/d/stranger/t"}, "4.04 unknown device"},
		{"wrong method", []string{"-m", "put", "-e", "1", "coap://" + open + "/d/fridge/t"}, "4.05 only POST"},
		{"an upload in blocks", []string{"-m", "post", "-t", "110", "-f", upload, "coap://" + open + "/d/fridge/t"}, "4.13 send the payload in one message"},
		{"twin", []string{"-m", "get", "coap://" + open + "/d/fridge/s"}, string(appendTwin(nil, fridge(), 110))},
		{"twin in blocks", []string{"-m", "get", "-A", "50", "coap://" + open + "/d/big/s"}, string(appendTwin(nil, big, 50))},
		{"twin in small blocks", []string{"-m", "get", "-b", "64", "coap://" + open + "/d/big/s"}, string(appendTwin(nil, big, 110))},
		{"discovery", []string{"-m", "get", "coap://" + open + "/.well-known/core"}, string(appendLinks(nil, nil))},
		{"no credential", []string{"-m", "post", "-e", "1", "coap://" + closed + "/d/fridge/t"}, "4.01 no k= in the query"},
		{"credential", []string{"-m", "post", "-e", "1", "coap://" + closed + "/d/fridge/t?k=s3cret"}, ""},
		{"wrong credential", []string{"-m", "post", "-e", "1", "coap://" + closed + "/d/fridge/t?k=guess"}, "4.01 bad credential"},
		{"twin with credential", []string{"-m", "get", "coap://" + closed + "/d/fridge/s?k=s3cret"}, string(appendTwin(nil, fridge(), 110))},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := run(c.args...)
			if part, ok := strings.CutPrefix(c.want, "…"); ok && strings.Contains(got, part) {
				return
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	uplinks := r.got()
	if len(uplinks) != 4 || uplinks[0].Records[0].Num != 21.5 {
		t.Errorf("%d uplinks, want 4", len(uplinks))
	}
}

// TestLibcoapSlowCommit: the client waits through the empty ACK for the separate answer, and acknowledges it.
func TestLibcoapSlowCommit(t *testing.T) {
	tool, err := exec.LookPath("coap-client-notls")
	if err != nil || testing.Short() {
		t.Skip("takes two seconds, and needs coap-client-notls (Debian: libcoap3-bin)")
	}
	t.Parallel()
	r := &rooms{receipt: func(string) *receipt { return &receipt{hold: true} }}
	g := serve(t, Config{Open: true}, r)
	commit := time.AfterFunc(1300*time.Millisecond, func() { r.commit() })
	defer commit.Stop()
	out, err := exec.CommandContext(t.Context(), tool, "-v", "6", "-B", "10", "-m", "post", "-e", "21.5",
		"coap://"+g.Addr().String()+"/d/fridge/t").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "t:CON c:2.04") {
		t.Errorf("%v: %s", err, out)
	}
	if st, _ := g.stats(); st.EmptyAcks != 1 || st.Separate != 1 {
		t.Errorf("%+v", st)
	}
}
