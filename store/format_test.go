package store

import (
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func writeFile(t *testing.T, fs vfs.FS, name, text string) {
	t.Helper()
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// A folder that is not ours is left alone, with a message that says what to do.
func TestFolderIsRefused(t *testing.T) {
	for _, c := range []struct {
		name, file, text, want string
		id                     Identity
	}{
		{name: "foreign", file: "photos.zip", text: "x", want: "not dunlin's: name an empty or new folder"},
		{name: "newer", file: formatFile, text: `{"is":"dunlin data folder","version":3,"cluster":"c","node":"n","shards":4}`, want: "start the newer dunlin"},
		{name: "cluster", file: formatFile, text: `{"is":"dunlin data folder","version":1,"cluster":"other","node":"n","shards":4}`, want: `belongs to cluster "other", this node to "c"`},
		{name: "node", file: formatFile, text: `{"is":"dunlin data folder","version":1,"cluster":"c","node":"m","shards":4}`, want: "two nodes must never share one"},
		{name: "shards", file: formatFile, text: `{"is":"dunlin data folder","version":1,"cluster":"c","node":"n","shards":8}`, want: "configure 8"},
		{name: "rubbish", file: formatFile, text: `{`, want: "not readable"},
		{name: "another program's", file: formatFile, text: `{"is":"else","version":1}`, want: "not dunlin's"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := vfs.NewMem()
			if err := fs.MkdirAll("data", 0o750); err != nil {
				t.Fatal(err)
			}
			writeFile(t, fs, "data/"+c.file, c.text)
			db, err := Open(small(fs, 4))
			if err == nil {
				t.Fatal(db.Close(), "opened it")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %q, want %q in it", err, c.want)
			}
			if names, _ := fs.List("data"); len(names) > 2 {
				t.Fatalf("the folder has %q now", names)
			}
		})
	}
}

func TestFolderKeepsItsIdentity(t *testing.T) {
	fs := vfs.NewMem()
	c := small(fs, 4)
	db, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(c); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Fatalf("opened twice: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	c.Identity = Identity{} // whatever it is
	db = openTest(t, c)
	if got, want := db.Identity(), (Identity{Cluster: "c", Node: "n", NodeID: LoneNode, Shards: 4}); got != want {
		t.Fatalf("got %+v, want %+v", got, want)
	}
}
