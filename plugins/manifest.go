package plugins

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/mod/semver"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins/abi"
)

// Bounds of a manifest, beside abi.ManifestBytesMax.
const (
	manifestTextMax    = 4 << 10 // bytes of a text
	manifestMetricsMax = 256     // in Reads and in Emits
	capabilitiesMax    = 16
	versionBytesMax    = 128
)

// Manifest is what a module says of itself, in its custom section abi.ManifestSection. All is optional; the zero value is
// that of a module without one.
type Manifest struct {
	Name         string          `json:"name,omitempty"`    // as plugins are named
	Version      string          `json:"version,omitempty"` // semantic version without "v"
	Description  string          `json:"description,omitempty"`
	License      string          `json:"license,omitempty"`      // SPDX expression
	Source       string          `json:"source,omitempty"`       // URL of where it was made from
	Capabilities []string        `json:"capabilities,omitempty"` // abi.CapabilityCommand, …; those that are not known grant nothing
	Reads        []string        `json:"reads,omitempty"`        // metrics
	Emits        []string        `json:"emits,omitempty"`        // metrics
	Config       json.RawMessage `json:"config,omitempty"`       // JSON schema of the settings, an object
}

// Asks reports whether the manifest has the capability.
func (m *Manifest) Asks(capability string) bool { return slices.Contains(m.Capabilities, capability) }

func (m *Manifest) grants() grants {
	if m == nil {
		return grants{}
	}
	return grants{command: m.Asks(abi.CapabilityCommand), publish: m.Asks(abi.CapabilityPublish)}
}

// ReadManifest returns a module's manifest and its JSON, nil if it has none. Errors are *dunlin.ModuleError.
func ReadManifest(wasm []byte) (*Manifest, json.RawMessage, error) {
	section, _, err := findManifest(wasm)
	if err != nil {
		return nil, nil, &dunlin.ModuleError{Check: "manifest", Detail: err.Error()}
	}
	if section == nil {
		return &Manifest{}, nil, nil
	}
	m, err := ParseManifest(section)
	if err != nil {
		return nil, nil, err
	}
	return m, bytes.Clone(section), nil
}

// WithManifest returns the module with the manifest in place of the one that it has, if any. manifest is JSON; nil: none.
func WithManifest(wasm []byte, manifest json.RawMessage) ([]byte, error) {
	if manifest != nil {
		if _, err := ParseManifest(manifest); err != nil {
			return nil, err
		}
	}
	_, at, err := findManifest(wasm)
	if err != nil {
		return nil, &dunlin.ModuleError{Check: "manifest", Detail: err.Error()}
	}
	out := make([]byte, 0, len(wasm)+len(manifest)+32)
	if at[1] > 0 {
		out = append(append(out, wasm[:at[0]]...), wasm[at[1]:]...)
	} else {
		out = append(out, wasm...)
	}
	if manifest == nil {
		return out, nil
	}
	name := binary.AppendUvarint(nil, uint64(len(abi.ManifestSection)))
	name = append(name, abi.ManifestSection...)
	out = binary.AppendUvarint(append(out, 0), uint64(len(name)+len(manifest)))
	return append(append(out, name...), manifest...), nil
}

// findManifest walks a module's sections. at is where the manifest's begins and ends.
func findManifest(wasm []byte) (manifest []byte, at [2]int, err error) {
	if len(wasm) < 8 || string(wasm[:4]) != "\x00asm" {
		return nil, at, fmt.Errorf("the file is not a WebAssembly module")
	}
	for off := 8; off < len(wasm); {
		size, n := binary.Uvarint(wasm[off+1:])
		begin := off + 1 + n
		if n <= 0 || n > 5 || size > uint64(len(wasm)-begin) {
			return nil, at, fmt.Errorf("the section at byte %d is longer than the module", off)
		}
		end := begin + int(size)
		if body, ok := customSection(wasm[off], wasm[begin:end]); ok {
			if at[1] > 0 {
				return nil, at, fmt.Errorf("the module has more than one section %s", abi.ManifestSection)
			}
			manifest, at = body, [2]int{off, end}
		}
		off = end
	}
	return manifest, at, nil
}

// customSection returns the body of a section, not nil, if it is the manifest's.
func customSection(id byte, section []byte) ([]byte, bool) {
	if id != 0 {
		return nil, false
	}
	size, n := binary.Uvarint(section)
	if n <= 0 || size != uint64(len(abi.ManifestSection)) || !bytes.HasPrefix(section[n:], []byte(abi.ManifestSection)) {
		return nil, false
	}
	return section[n+len(abi.ManifestSection):], true
}

// ParseManifest reads a manifest's JSON. It is strict in what it knows and ignores members that it doesn't. Errors are
// *dunlin.ModuleError.
func ParseManifest(text []byte) (*Manifest, error) {
	m, err := parseManifest(text)
	if err != nil {
		return nil, &dunlin.ModuleError{Check: "manifest", Detail: err.Error()}
	}
	return m, nil
}

func parseManifest(text []byte) (*Manifest, error) {
	if len(text) > abi.ManifestBytesMax {
		return nil, fmt.Errorf("the manifest has %d bytes, at most %d are allowed", len(text), abi.ManifestBytesMax)
	}
	if !utf8.Valid(text) {
		return nil, fmt.Errorf("the manifest is not UTF-8")
	}
	// Into a struct, encoding/json would take "NAME" for "name".
	var members map[string]json.RawMessage
	if err := json.Unmarshal(text, &members); err != nil {
		return nil, fmt.Errorf("the manifest is not a JSON object: %v", err)
	}
	if members == nil {
		return nil, fmt.Errorf("the manifest is null, not a JSON object")
	}
	m := &Manifest{}
	for _, f := range []struct {
		name string
		into any
		want string
	}{
		{"name", &m.Name, "a text"}, {"version", &m.Version, "a text"}, {"description", &m.Description, "a text"},
		{"license", &m.License, "a text"}, {"source", &m.Source, "a text"},
		{"capabilities", &m.Capabilities, "a list of texts"},
		{"reads", &m.Reads, "a list of texts"}, {"emits", &m.Emits, "a list of texts"},
	} {
		if raw, ok := members[f.name]; ok && json.Unmarshal(raw, f.into) != nil {
			return nil, fmt.Errorf("the manifest's %s must be %s", f.name, f.want)
		}
	}
	if raw, ok := members["config"]; ok && string(raw) != "null" {
		if raw[0] != '{' {
			return nil, fmt.Errorf("the manifest's config must be a JSON schema, an object")
		}
		m.Config = bytes.Clone(raw)
	}
	return m, m.validate()
}

// validate checks what the members say.
func (m *Manifest) validate() error {
	if m.Name != "" {
		if err := dunlin.ValidatePluginName(m.Name); err != nil {
			return fmt.Errorf("the manifest's name: %v", err)
		}
	}
	if v := "v" + m.Version; m.Version != "" && (len(v) > versionBytesMax || semver.Canonical(v)+semver.Build(v) != v) {
		return fmt.Errorf("the manifest's version %.40q is not a semantic version such as 1.4.0 or 2.0.0-rc.1", m.Version)
	}
	for _, t := range []struct{ name, text string }{{"description", m.Description}, {"license", m.License}, {"source", m.Source}} {
		if len(t.text) > manifestTextMax {
			return fmt.Errorf("the manifest's %s has %d bytes, at most %d are allowed", t.name, len(t.text), manifestTextMax)
		}
	}
	if m.Source != "" && !isSource(m.Source) {
		return fmt.Errorf("the manifest's source %.80q is not a URL such as https://git.example/plugins/cold-chain", m.Source)
	}
	if len(m.Capabilities) > capabilitiesMax {
		return fmt.Errorf("the manifest has %d capabilities, at most %d are allowed", len(m.Capabilities), capabilitiesMax)
	}
	for _, c := range m.Capabilities {
		if err := dunlin.ValidatePluginName(c); err != nil {
			return fmt.Errorf("the manifest's capability %.80q is no name", c)
		}
	}
	for _, l := range []struct {
		name string
		list []string
	}{{"reads", m.Reads}, {"emits", m.Emits}} {
		if len(l.list) > manifestMetricsMax {
			return fmt.Errorf("the manifest's %s has %d metrics, at most %d are allowed", l.name, len(l.list), manifestMetricsMax)
		}
		for _, metric := range l.list {
			if err := dunlin.ValidateMetric(metric); err != nil {
				return fmt.Errorf("the manifest's %s: %v", l.name, err)
			}
		}
	}
	return nil
}

// isSource reports whether s is a URL that people may be shown as a link: one with "javascript:" is none.
func isSource(s string) bool {
	u, err := url.Parse(s)
	if err != nil {
		return false
	}
	switch strings.TrimPrefix(u.Scheme, "git+") {
	case "https", "http", "ssh", "git", "oci":
		return u.Host != ""
	}
	return false
}
