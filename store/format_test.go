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
		{name: "alone", file: formatFile, text: `{"is":"dunlin data folder","version":1,"cluster":"","node":"n","shards":4}`, want: "belongs to no cluster"},
		{name: "another life", file: formatFile, text: `{"is":"dunlin data folder","version":2,"cluster":"c","node":"n","node_id":"00000000000000aa","shards":4}`,
			id: Identity{NodeID: 0xbb}, want: "belongs to node id 00000000000000aa, this is 00000000000000bb"},
		{name: "a lone node's", file: formatFile, text: `{"is":"dunlin data folder","version":1,"cluster":"c","node":"n","shards":4}`,
			id: Identity{NodeID: 0xbb}, want: "belongs to node id 0000000000000001"},
		{name: "rubbish", file: formatFile, text: `{`, want: "not readable"},
		{name: "another program's", file: formatFile, text: `{"is":"else","version":1}`, want: "not dunlin's"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := vfs.NewMem()
			if err := fs.MkdirAll("data", 0o750); err != nil {
				t.Fatal(err)
			}
			writeFile(t, fs, "data/"+c.file, c.text)
			cfg := small(fs, 4)
			cfg.Identity.NodeID = c.id.NodeID
			db, err := Open(cfg)
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

// A folder gets its node's id when it is made and keeps it; it can be asked for it without being opened. One without an id
// is node 1's, opens as it is, and stays readable for the build before until it has what that build would misread.
func TestFolderKnowsItsNode(t *testing.T) {
	fs := vfs.NewMem()
	if _, found, err := ReadIdentity(fs, "data"); found || err != nil {
		t.Fatalf("found %v, %v in no folder", found, err)
	}
	c := small(fs, 4)
	c.Identity.NodeID = 0xabc
	db, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	want := Identity{Cluster: "c", Node: "n", NodeID: 0xabc, Shards: 4}
	if got, found, err := ReadIdentity(fs, "data"); got != want || !found || err != nil { // while it is open
		t.Errorf("got %+v, %v, %v, want %+v", got, found, err, want)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if f, _, err := readFormat(fs, "data"); err != nil || f.Version != 2 {
		t.Errorf("version %d, %v", f.Version, err)
	}

	fs = vfs.NewMem()
	if err := fs.MkdirAll("data", 0o750); err != nil {
		t.Fatal(err)
	}
	writeFile(t, fs, "data/"+formatFile, `{"is":"dunlin data folder","version":1,"cluster":"","node":"","shards":4}`)
	c = Config{FS: fs, Dir: "data"}
	db, err = Open(c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if id := db.Identity(); id.NodeID != LoneNode {
		t.Errorf("node id %s", id.NodeID)
	}
	if err := db.Claim("c1", "n1"); err != nil {
		t.Fatal(err)
	}
	if err := db.Claim("c2", "n1"); err == nil || !strings.Contains(err.Error(), "data of two clusters cannot be joined") {
		t.Errorf("claimed twice: %v", err)
	}
	want = Identity{Cluster: "c1", Node: "n1", NodeID: LoneNode, Shards: 4}
	if got, _, err := ReadIdentity(fs, "data"); got != want || db.Identity() != want || err != nil {
		t.Errorf("got %+v, %+v, %v, want %+v", got, db.Identity(), err, want)
	}
	if f, _, err := readFormat(fs, "data"); err != nil || f.Version != 1 {
		t.Errorf("version %d, %v", f.Version, err)
	}
	if err := db.Destroy(2, []byte("tomb")); err != nil {
		t.Fatal(err)
	}
	if f, _, err := readFormat(fs, "data"); err != nil || f.Version != 2 || f.Cluster != "c1" {
		t.Errorf("version %d of cluster %q, %v", f.Version, f.Cluster, err)
	}
}
