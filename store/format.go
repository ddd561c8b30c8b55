package store

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/dunlin-iot/dunlin"
)

// FormatVersion is the newest version of the data folder that this build reads and writes. Version 1 is the lone node's: its
// only reader would take a replica's absence for a new shard. A folder becomes version 2 when it belongs to a node with an id
// of its own, or when it first installs or destroys a replica.
const FormatVersion = 2

const formatLone = 1

const (
	formatFile   = "FORMAT"
	lockFile     = "LOCK"
	formatMagic  = "dunlin data folder"
	formatMaxLen = 64 << 10
)

// Identity says whose data a folder holds. An empty field of Config.Identity takes what the folder says.
type Identity struct {
	Cluster string        `json:"cluster"`           // the cluster's id, "" while it has none
	Node    string        `json:"node"`              // the node's name
	NodeID  dunlin.NodeID `json:"node_id,omitempty"` // its id in every Raft group; LoneNode in a folder that names none
	Shards  int           `json:"shards"`
}

// LoneNode is the id of a node that never met another: that of a folder made without one.
const LoneNode dunlin.NodeID = 1

// folderFormat is the FORMAT file.
type folderFormat struct {
	Magic   string `json:"is"`
	Version int    `json:"version"`
	Identity
}

// claimFolder makes dir ours, or finds that it is: it creates the folder and its FORMAT, or checks the one that is there.
func claimFolder(fsys vfs.FS, dir string, want Identity) (Identity, error) {
	have, found, err := readFormat(fsys, dir)
	if err != nil {
		return Identity{}, err
	}
	if found {
		have.NodeID = cmp.Or(have.NodeID, LoneNode)
		return have.Identity, have.check(dir, want)
	}
	names, err := fsys.List(dir)
	if err != nil {
		return Identity{}, fmt.Errorf("store: list %s: %w", dir, err)
	}
	names = slices.DeleteFunc(names, func(n string) bool { return n == lockFile || strings.HasPrefix(n, formatFile+".") })
	if len(names) > 0 {
		return Identity{}, fmt.Errorf("store: %s has no %s but %q in it, so it is not dunlin's: name an empty or new folder as data folder",
			dir, formatFile, names[0])
	}
	want.NodeID = cmp.Or(want.NodeID, LoneNode)
	f := folderFormat{Magic: formatMagic, Version: formatLone, Identity: want}
	if want.NodeID != LoneNode {
		f.Version = FormatVersion
	}
	return want, writeFormat(fsys, dir, f)
}

// ReadIdentity reads whose data a folder holds without opening it; a folder that another process has open may be read.
// fsys nil is the disk.
func ReadIdentity(fsys vfs.FS, dir string) (id Identity, found bool, err error) {
	if fsys == nil {
		fsys = vfs.Default
	}
	f, found, err := readFormat(fsys, dir)
	if err != nil || !found {
		return Identity{}, false, err
	}
	f.NodeID = cmp.Or(f.NodeID, LoneNode)
	return f.Identity, true, f.check(dir, Identity{})
}

// Claim gives a folder that belongs to no cluster, or whose node has no name, what it lacks: a node that was alone becomes
// the first of a cluster with all its data. What the folder says already must not differ.
func (db *DB) Claim(cluster, node string) error {
	db.upkeep.Lock()
	defer db.upkeep.Unlock()
	return db.rewriteFormat(func(f *folderFormat) error {
		f.Cluster, f.Node = cmp.Or(f.Cluster, cluster), cmp.Or(f.Node, node)
		return f.check(db.cfg.Dir, Identity{Cluster: cluster, Node: node})
	})
}

// Refound makes the folder one of a new cluster: the old one has lost its majority for good, and its other nodes must not
// meet this one as if nothing had happened.
func (db *DB) Refound(cluster string) error {
	db.upkeep.Lock()
	defer db.upkeep.Unlock()
	return db.rewriteFormat(func(f *folderFormat) error {
		f.Cluster = cluster
		return nil
	})
}

// outgrow makes the folder one that a lone node's build refuses. The caller holds upkeep.
func (db *DB) outgrow() error {
	return db.rewriteFormat(func(f *folderFormat) error {
		f.Version = FormatVersion
		return nil
	})
}

// rewriteFormat changes FORMAT, if f does. The caller holds upkeep.
func (db *DB) rewriteFormat(f func(*folderFormat) error) error {
	have, found, err := readFormat(db.cfg.FS, db.cfg.Dir)
	if err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("store: %s is gone from %s: restore it from a backup", formatFile, db.cfg.Dir)
	}
	was := *have
	if err := f(have); err != nil {
		return err
	}
	if *have != was {
		err = writeFormat(db.cfg.FS, db.cfg.Dir, *have)
	}
	if err == nil {
		db.identity.Store(&Identity{have.Cluster, have.Node, cmp.Or(have.NodeID, LoneNode), have.Shards})
	}
	return err
}

// check refuses a folder of another time, cluster or node, and says what to do about it.
func (f *folderFormat) check(dir string, want Identity) error {
	switch {
	case f.Magic != formatMagic:
		return fmt.Errorf("store: %s in %s is not dunlin's: name an empty or new folder as data folder", formatFile, dir)
	case f.Version > FormatVersion:
		return fmt.Errorf("store: %s has format %d, written by a newer dunlin; this one knows formats up to %d: start the newer dunlin, or name another folder",
			dir, f.Version, FormatVersion)
	case f.Version < 1 || f.Shards < 1:
		return fmt.Errorf("store: %s in %s is damaged (version %d, %d shards): restore it from a backup", formatFile, dir, f.Version, f.Shards)
	case want.Cluster != "" && f.Cluster == "":
		return fmt.Errorf("store: %s belongs to no cluster, it was made by a node that is alone: start that node without joining, so that others join it, or name an empty folder",
			dir)
	case want.Cluster != "" && f.Cluster != want.Cluster:
		return fmt.Errorf("store: %s belongs to cluster %q, this node to %q: correct the cluster's name, or name another folder; data of two clusters cannot be joined",
			dir, f.Cluster, want.Cluster)
	case want.Node != "" && f.Node != want.Node:
		return fmt.Errorf("store: %s belongs to node %q, this is %q: correct the node's name, or name another folder; two nodes must never share one",
			dir, f.Node, want.Node)
	case want.NodeID != 0 && cmp.Or(f.NodeID, LoneNode) != want.NodeID:
		return fmt.Errorf("store: %s belongs to node id %s, this is %s: a folder keeps its id for life; start the node with the folder it had, or name an empty one for a new node",
			dir, cmp.Or(f.NodeID, LoneNode), want.NodeID)
	case want.Shards != 0 && f.Shards != want.Shards:
		return fmt.Errorf("store: %s has %d shards, the configuration says %d: shards are fixed when a cluster is first started; configure %d",
			dir, f.Shards, want.Shards, f.Shards)
	}
	return nil
}

func readFormat(fsys vfs.FS, dir string) (*folderFormat, bool, error) {
	name := fsys.PathJoin(dir, formatFile)
	file, err := fsys.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("store: open %s: %w", name, err)
	}
	b, err := io.ReadAll(io.LimitReader(file, formatMaxLen))
	if err = errors.Join(err, file.Close()); err != nil {
		return nil, false, fmt.Errorf("store: read %s: %w", name, err)
	}
	f := &folderFormat{}
	if err := json.Unmarshal(b, f); err != nil {
		return nil, false, fmt.Errorf("store: %s is not readable (%w): name an empty or new folder as data folder, or restore the file", name, err)
	}
	return f, true, nil
}

// writeFormat leaves either no FORMAT or a whole one, whatever moment the power fails.
func writeFormat(fsys vfs.FS, dir string, f folderFormat) error {
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	tmp, name := fsys.PathJoin(dir, formatFile+".new"), fsys.PathJoin(dir, formatFile)
	file, err := fsys.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("store: create %s: %w", tmp, err)
	}
	_, err = file.Write(append(b, '\n'))
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("store: write %s: %w", tmp, err)
	}
	if err := fsys.Rename(tmp, name); err != nil {
		return fmt.Errorf("store: rename %s: %w", tmp, err)
	}
	return syncFolder(fsys, dir)
}

// syncFolder makes the names in dir last.
func syncFolder(fsys vfs.FS, dir string) error {
	d, err := fsys.OpenDir(dir)
	if err != nil {
		return fmt.Errorf("store: open %s: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("store: sync %s: %w", dir, err)
	}
	return nil
}
