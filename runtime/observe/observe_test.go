package observe

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

func TestAdminServesMetricsAndProfilesUntilItsContextEnds(t *testing.T) {
	o, err := Setup(io.Discard, "info", "text")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- o.ServeAdmin(ctx, ln) }()
	for path, want := range map[string]string{"/metrics": "go_goroutines", "/debug/pprof/goroutine?debug=1": "goroutine profile"} {
		resp, err := http.Get("http://" + ln.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !strings.Contains(string(b), want) {
			t.Errorf("%s: %q is not in %.200s", path, want, b)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestLogFormats(t *testing.T) {
	var b bytes.Buffer
	o, err := Setup(&b, "warn", "json")
	if err != nil {
		t.Fatal(err)
	}
	o.Log.Info("hidden")
	o.Log.Warn("shown", "node", "n1")
	if got := b.String(); strings.Contains(got, "hidden") || !strings.Contains(got, `"msg":"shown","node":"n1"`) {
		t.Errorf("got %s", got)
	}
	if _, err := Setup(&b, "loud", "text"); err == nil {
		t.Error("level loud was taken")
	}
}
