// Package vectors is what every SDK is tested against: frames to a guest with the frames that must come back, byte by byte,
// for the four examples that each SDK has.
//
// The *.json files are what SDKs of all languages read, see README.md; the *.txt files are what people read and write, and
// what the others are made from:
//
//	go test ./sdk/vectors -update
//
// Part of the runtime; no compatibility promise before v1. The frames are of ABI v1, which is frozen.
package vectors

import (
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"testing"

	"github.com/dunlin-iot/dunlin/plugins/abi"
)

//go:embed *.json *.txt records
var files embed.FS

// FS returns the files of this folder as they were at build time.
func FS() fs.FS { return files }

// Hex is bytes that JSON has as hexadecimal digits.
type Hex []byte

// MarshalText renders lower-case hex.
func (h Hex) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h), nil }

// UnmarshalText parses hex.
func (h *Hex) UnmarshalText(b []byte) (err error) {
	*h, err = hex.AppendDecode(nil, b)
	return err
}

// File is one example with one configuration, and calls of one instance, in order.
type File struct {
	Name    string          `json:"-"` // of the file, without ".json"
	Example string          `json:"example"`
	Config  json.RawMessage `json:"config"`
	Calls   []Call          `json:"calls"`
}

// Call is one call of dunlin_init, if Init is set, or of dunlin_process.
type Call struct {
	What  string `json:"what"`
	Init  bool   `json:"init,omitempty"`
	Carry bool   `json:"carry,omitempty"` // uses names that the calls before it told: not for a new instance
	Error bool   `json:"error,omitempty"` // an error result must come back, with any text
	In    Hex    `json:"in"`
	Out   Hex    `json:"out"`
}

// Record is a record from a guest, for tests of encoders: the words of the source and the bytes.
type Record struct {
	What  string `json:"what"`
	Kind  uint16 `json:"kind"`
	Flags uint16 `json:"flags"`
	Hex   Hex    `json:"hex"`
}

// Records returns what the answers of a source consist of.
func (s *Source) Records() (list []Record) {
	for i := range s.Calls {
		r := abi.NewReader(s.Calls[i].Out)
		for n := 0; ; n++ {
			at := r.Offset()
			kind, flags, rec, err := r.Next()
			if err != nil || rec == nil {
				break
			}
			list = append(list, Record{What: s.Calls[i].wants[n], Kind: uint16(kind), Flags: flags, Hex: s.Calls[i].Out[at:r.Offset()]})
		}
	}
	return list
}

// Load reads the *.json files of a folder.
func Load(fsys fs.FS) ([]File, error) {
	names, err := fs.Glob(fsys, "*.json")
	if err != nil {
		return nil, err
	}
	var list []File
	for _, name := range names {
		b, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, err
		}
		f := File{Name: strings.TrimSuffix(path.Base(name), ".json")}
		if err := json.Unmarshal(b, &f); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if len(f.Calls) == 0 || !f.Calls[0].Init {
			return nil, fmt.Errorf("%s: the first call is not init", name)
		}
		list = append(list, f)
	}
	return list, nil
}

// Guest is an instance of an example, wherever it runs. failed says that the call had an error result. What it returns is
// only looked at until the next call.
type Guest interface {
	Init(frame []byte) (out []byte, failed bool)
	Process(frame []byte) (out []byte, failed bool)
}

// Test plays the vectors of an example: each file's calls all on one instance, and each call on an instance that is as new as
// it can be (the calls that tell its names come first). State is in the frames: a guest that answers differently then remembers
// what it should not.
func Test(t *testing.T, example string, open func(t testing.TB) Guest) {
	t.Helper()
	list, err := Load(FS())
	if err != nil {
		t.Fatal(err)
	}
	played := 0
	for i := range list {
		if list[i].Example == example {
			list[i].test(t, open)
			played++
		}
	}
	if played == 0 {
		t.Fatalf("there are no vectors of %q", example)
	}
}

func (f *File) test(t *testing.T, open func(t testing.TB) Guest) {
	t.Helper()
	play := func(i int, g Guest, instance string) {
		c := &f.Calls[i]
		call := g.Process
		if c.Init {
			call = g.Init
		}
		out, failed := call(c.In)
		got, want := "an error result: "+string(out), "an error result"
		if !failed {
			got = Describe(out)
		}
		if !c.Error {
			want = Describe(c.Out)
		}
		if failed != c.Error || !failed && string(out) != string(c.Out) {
			t.Errorf("%s, call %d, on a %s instance: %s\ngot:\n%swant:\n%s", f.Name, i, instance, c.What, got, want)
		}
	}
	used := open(t)
	from := 1
	for i := range f.Calls {
		play(i, used, "used")
		if f.Calls[i].Init {
			continue
		} else if !f.Calls[i].Carry {
			from = i
		}
		fresh := open(t)
		play(0, fresh, "new")
		for j := from; j <= i; j++ {
			play(j, fresh, "new")
		}
	}
}
