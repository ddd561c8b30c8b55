package oci

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// registry starts Debian's docker-registry on loopback.
func registry(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		if os.Getenv("DUNLIN_FOREIGN") == "required" {
			t.Fatal(err)
		}
		t.Skip("docker-registry is not installed: apt-get install docker-registry")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(config, []byte("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: "+dir+"/data}}\nhttp: {addr: "+addr+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, program, "serve", config)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 500 {
		if r, err := http.Get("http://" + addr + "/v2/"); err == nil {
			r.Body.Close()
			return addr
		}
		<-tick.C
	}
	t.Fatal("the registry does not answer")
	return ""
}

// TestARealRegistry: what is pushed is pulled, by tag and by digest, with its signature.
func TestARealRegistry(t *testing.T) {
	addr, ctx := registry(t), t.Context()
	a := Artifact{Name: "rule", Module: []byte("\x00asm" + strings.Repeat("x", 100_000)), Signature: "untrusted comment: …\n"}
	ref := addr + "/plugins/rule:1.2.0"
	digest, err := Push(ctx, ref, a, Options{})
	if err != nil {
		t.Fatal(err)
	}
	again, err := Push(ctx, addr+"/plugins/rule:latest", a, Options{})
	if err != nil || again != digest {
		t.Errorf("the same plugin is pushed as %s, then %s, %v", digest, again, err)
	}
	for _, r := range []string{ref, addr + "/plugins/rule", addr + "/plugins/rule@" + digest} {
		got, err := Pull(ctx, r, Options{})
		if err != nil {
			t.Fatalf("%s: %v", r, err)
		}
		if got.Name != "rule" || !bytes.Equal(got.Module, a.Module) || got.Signature != a.Signature || got.Reference != addr+"/plugins/rule@"+digest {
			t.Errorf("%s: %s of %d bytes, %q", r, got.Reference, len(got.Module), got.Signature)
		}
	}
	if _, err := Pull(ctx, addr+"/plugins/other:1", Options{}); err == nil {
		t.Error("pulled what is not there")
	}
	if _, err := Push(ctx, addr+"/plugins/rule@"+digest, a, Options{}); err == nil || !strings.Contains(err.Error(), "tag") {
		t.Errorf("push to a digest: %v", err)
	}
}

// TestReferences: a wrong reference is told before anything is asked.
func TestReferences(t *testing.T) {
	for _, ref := range []string{"", "rule", "host/UPPER:1", "host/name:tag with spaces"} {
		if _, err := Pull(t.Context(), ref, Options{}); err == nil || !strings.Contains(err.Error(), "no reference") {
			t.Errorf("%q: %v", ref, err)
		}
	}
	for host, want := range map[string]bool{"localhost": true, "127.0.0.1:5000": true, "[::1]:5000": true, "example.com": false, "127.example.com": false} {
		if loopback(host) != want {
			t.Errorf("loopback(%s) is %v", host, !want)
		}
	}
}
