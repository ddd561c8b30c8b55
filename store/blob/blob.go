// Package blob keeps content-addressed files, plugin modules and firmware, below one folder. A blob is there whole or not
// at all, whatever moment the power fails, and what is read is what was put: its hash is its name, and is checked.
//
// Part of the runtime; no compatibility promise before v1.
package blob

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"

	"github.com/dunlin-iot/dunlin"
)

// BytesMax bounds one blob.
const BytesMax = 64 << 20

const tmpSuffix = ".new"

// Blobs is a folder of blobs: "ab/abcdef….blob" has the bytes whose SHA-256 is abcdef…. Its methods may be called by any
// number of goroutines at a time.
type Blobs struct {
	root *os.Root
	seq  atomic.Uint64 // makes the names of unfinished files differ
}

// Open opens or makes a folder of blobs, and clears away what a crash left unfinished. One process may have it open.
func Open(dir string) (*Blobs, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("blobs: make %s: %w", dir, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("blobs: open %s: %w", dir, err)
	}
	b := &Blobs{root: root}
	if err := b.sweep(); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return b, nil
}

func (b *Blobs) sweep() error {
	err := fs.WalkDir(b.root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, tmpSuffix) {
			err = b.root.Remove(path)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("blobs: clear away unfinished files: %w", err)
	}
	return nil
}

// Close closes the folder.
func (b *Blobs) Close() error { return b.root.Close() }

func names(h dunlin.ModuleHash) (dir, file string) {
	s := h.String()
	return s[:2], s[:2] + "/" + s + ".blob"
}

// Put keeps data and returns its hash. When it returns, the blob is on disk. Putting the same data again is nothing.
func (b *Blobs) Put(data []byte) (dunlin.ModuleHash, error) {
	h := dunlin.ModuleHash(sha256.Sum256(data))
	if len(data) > BytesMax {
		return h, fmt.Errorf("put blob: %w: %d bytes, at most %d", dunlin.ErrTooLarge, len(data), BytesMax)
	}
	if have, err := b.Get(h); err == nil && len(have) == len(data) {
		return h, nil
	}
	if err := b.put(h, data); err != nil {
		return h, fmt.Errorf("put blob %s: %w", h, err)
	}
	return h, nil
}

func (b *Blobs) put(h dunlin.ModuleHash, data []byte) (err error) {
	dir, name := names(h)
	switch err := b.root.Mkdir(dir, 0o750); {
	case err == nil:
		if err := b.syncDir("."); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrExist):
		return err
	}
	tmp := fmt.Sprintf("%s.%d%s", name, b.seq.Add(1), tmpSuffix)
	f, err := b.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = b.root.Rename(tmp, name)
	}
	if err != nil {
		return errors.Join(err, b.root.Remove(tmp))
	}
	return b.syncDir(dir)
}

// syncDir makes the names in a folder last.
func (b *Blobs) syncDir(dir string) error {
	d, err := b.root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Get returns a blob. The error wraps dunlin.ErrNotFound if there is none, also if what is there is not what was put.
func (b *Blobs) Get(h dunlin.ModuleHash) ([]byte, error) {
	_, name := names(h)
	f, err := b.root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob %s: %w", h, dunlin.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", h, err)
	}
	data, err := io.ReadAll(io.LimitReader(f, BytesMax+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("blob %s: %w", h, err)
	}
	if sha256.Sum256(data) != h {
		return nil, fmt.Errorf("blob %s: %w: the file is damaged; put it again", h, dunlin.ErrNotFound)
	}
	return data, nil
}

// Has reports whether a blob is there, without reading it.
func (b *Blobs) Has(h dunlin.ModuleHash) bool {
	_, name := names(h)
	st, err := b.root.Stat(name)
	return err == nil && st.Mode().IsRegular()
}

// Remove removes a blob; one that is not there is none.
func (b *Blobs) Remove(h dunlin.ModuleHash) error {
	dir, name := names(h)
	err := b.root.Remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = b.syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("remove blob %s: %w", h, err)
	}
	return nil
}
