package blob

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/dunlin-iot/dunlin"
)

func open(t *testing.T, dir string) *Blobs {
	t.Helper()
	b, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func TestPutGetRemove(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "a", "modules"))
	for _, data := range [][]byte{nil, []byte("module"), bytes.Repeat([]byte{7}, 3<<20)} {
		h, err := b.Put(data)
		if err != nil {
			t.Fatal(err)
		}
		if h != dunlin.ModuleHash(sha256.Sum256(data)) {
			t.Fatalf("hash %s of %d bytes is not their SHA-256", h, len(data))
		}
		if _, err := b.Put(data); err != nil {
			t.Fatalf("put again: %v", err)
		}
		got, err := b.Get(h)
		if err != nil || !bytes.Equal(got, data) || !b.Has(h) {
			t.Fatalf("got %d bytes, %v, has %t; want %d", len(got), err, b.Has(h), len(data))
		}
		for range 2 {
			if err := b.Remove(h); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := b.Get(h); !errors.Is(err, dunlin.ErrNotFound) || b.Has(h) {
			t.Fatalf("after remove: got %v, want ErrNotFound", err)
		}
	}
}

func TestDamageIsSeenAndMended(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	h, err := b.Put([]byte("module"))
	if err != nil {
		t.Fatal(err)
	}
	_, name := names(h)
	if err := os.WriteFile(filepath.Join(dir, name), []byte("modulo"), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Get(h); !errors.Is(err, dunlin.ErrNotFound) {
		t.Fatalf("damaged blob: got %v, want ErrNotFound", err)
	}
	if _, err := b.Put([]byte("module")); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Get(h); err != nil || string(got) != "module" {
		t.Fatalf("after another put: %q, %v", got, err)
	}
}

func TestOpenClearsUnfinishedFilesOnly(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	h, err := b.Put([]byte("module"))
	if err != nil {
		t.Fatal(err)
	}
	_, name := names(h)
	left := filepath.Join(dir, name+".9"+tmpSuffix)
	if err := os.WriteFile(left, []byte("mod"), 0o640); err != nil {
		t.Fatal(err)
	}
	again := open(t, dir)
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("unfinished file: %v, want it gone", err)
	}
	if !again.Has(h) {
		t.Fatal("the finished blob is gone")
	}
}

func TestTooLarge(t *testing.T) {
	b := open(t, t.TempDir())
	if _, err := b.Put(make([]byte, BytesMax+1)); !errors.Is(err, dunlin.ErrTooLarge) {
		t.Fatalf("got %v, want ErrTooLarge", err)
	}
}

func TestManyPutTheSameAtOnce(t *testing.T) {
	b := open(t, t.TempDir())
	data := bytes.Repeat([]byte("x"), 10_000)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := b.Put(data); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got, err := b.Get(sha256.Sum256(data)); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
}
