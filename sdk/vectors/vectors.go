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

// Play runs the file's calls: all of them on one instance, and each on an instance that is as new as it can be (the calls
// that tell its names come first). Each difference from what must come back is given to report.
func (f *File) Play(open func() (Guest, error), report func(call int, instance, got, want string)) error {
	used, err := open()
	if err != nil {
		return err
	}
	for i := range f.Calls {
		f.Calls[i].play(used, func(got, want string) { report(i, "used", got, want) })
	}
	from := 1
	for i := range f.Calls {
		if c := &f.Calls[i]; c.Init {
			continue
		} else if !c.Carry {
			from = i
		}
		fresh, err := open()
		if err != nil {
			return err
		}
		for j := range f.Calls[:i+1] {
			if c := &f.Calls[j]; c.Init || j >= from {
				c.play(fresh, func(got, want string) { report(i, "new", got, want) })
			}
		}
	}
	return nil
}

func (c *Call) play(g Guest, differs func(got, want string)) {
	call := g.Process
	if c.Init {
		call = g.Init
	}
	out, failed := call(c.In)
	switch {
	case failed && !c.Error:
		differs("error result: "+string(out), Describe(c.Out))
	case c.Error && !failed:
		differs(Describe(out), "error result")
	case !c.Error && string(out) != string(c.Out):
		differs(Describe(out), Describe(c.Out))
	}
}
