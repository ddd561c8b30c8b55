// Package keys turns a cluster's one secret into all that nodes prove themselves and hide their words with: the keys of
// gossip, a certificate authority, and each node's own short-lived certificate.
// Part of the runtime; no compatibility promise before v1.
//
// # From a secret to a connection
//
//	            ┌─ HKDF-SHA256 "dunlin gossip v1" ──▶ AES-256 key of gossip
//	secret, 32 ─┼─ HKDF-SHA256 "dunlin ca v1" ──────▶ Ed25519 key of the CA ──signs──▶ leaf of this node: 30 days, in memory,
//	bytes       └─ HKDF-SHA256 "dunlin fingerprint v1" ▶ 8 bytes to compare           dunlin://<cluster>/<node id>/<name>
//
// Every node that knows the secret makes the same CA byte for byte and signs its own leaf, so nothing has to be handed out,
// renewed by hand or kept on disk but the secret. What follows from that: who knows the secret can be any node. The id in
// the certificate guards against mistakes, not against somebody who has the secret.
//
// # Rotation
//
// A Secret may hold several, the primary first. A node signs and encrypts with the primary and accepts all of them. So a
// secret is replaced in three rounds of restarts, one node at a time: "old,new" everywhere, then "new,old" everywhere, then
// "new". A round must be complete before the next begins: a node that is one round behind still meets all others, one that
// is two rounds behind does not.
package keys

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

const (
	keyBytes   = 32
	secretsMax = 4       // in rotation
	fileMax    = 4 << 10 // bytes of a secret's file
)

// Secret is a cluster's secret; several while it is being replaced, the primary first. The zero value is none.
type Secret struct{ keys [][keyBytes]byte }

// NewSecret makes a random one.
func NewSecret() Secret {
	var k [keyBytes]byte
	rand.Read(k[:]) // never fails: it ends the process instead
	return Secret{[][keyBytes]byte{k}}
}

// ParseSecret reads what String wrote: 64 hex digits or 43 of base64url, or up to four of these with commas or white space
// between them, the primary first. Lines that begin with # are comments. Errors don't quote what was read.
func ParseSecret(text string) (Secret, error) {
	var s Secret
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		for _, word := range strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(", \t\r\n", r) }) {
			b, err := hex.DecodeString(word)
			if err != nil {
				b, err = base64.RawURLEncoding.Strict().DecodeString(strings.TrimRight(word, "="))
			}
			if err != nil || len(b) != keyBytes {
				return Secret{}, fmt.Errorf("%w: cluster secret number %d has %d characters, want 64 hex digits or 43 of base64url; `dunlin cluster key` prints the one in use", dunlin.ErrInvalid, len(s.keys)+1, len(word))
			}
			k := [keyBytes]byte(b)
			switch {
			case k == [keyBytes]byte{}:
				return Secret{}, fmt.Errorf("%w: cluster secret number %d is all zeros", dunlin.ErrInvalid, len(s.keys)+1)
			case s.has(k):
				return Secret{}, fmt.Errorf("%w: cluster secret number %d is there twice", dunlin.ErrInvalid, len(s.keys)+1)
			case len(s.keys) == secretsMax:
				return Secret{}, fmt.Errorf("%w: more than %d cluster secrets", dunlin.ErrInvalid, secretsMax)
			}
			s.keys = append(s.keys, k)
		}
	}
	if len(s.keys) == 0 {
		return Secret{}, fmt.Errorf("%w: no cluster secret, want 64 hex digits or 43 of base64url", dunlin.ErrInvalid)
	}
	return s, nil
}

func (s Secret) has(k [keyBytes]byte) bool {
	for _, have := range s.keys {
		if have == k {
			return true
		}
	}
	return false
}

// IsZero reports whether there is no secret.
func (s Secret) IsZero() bool { return len(s.keys) == 0 }

// String is the secret itself in hex, for `dunlin cluster key`: never log it. The primary comes first, with commas between.
func (s Secret) String() string {
	words := make([]string, len(s.keys))
	for i, k := range s.keys {
		words[i] = hex.EncodeToString(k[:])
	}
	return strings.Join(words, ",")
}

// LogValue keeps the secret out of logs: it is the fingerprints.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.Fingerprint()) }

// Fingerprint is for comparing the secrets of two nodes without showing them: 16 hex digits for each, the primary first.
func (s Secret) Fingerprint() string {
	words := make([]string, len(s.keys))
	for i, k := range s.keys {
		words[i] = hex.EncodeToString(derive(k, "dunlin fingerprint v1", 8))
	}
	return strings.Join(words, ",")
}

// Gossip returns the keys that gossip is encrypted with, the primary first: 32 bytes each, for AES-256.
func (s Secret) Gossip() [][]byte {
	keys := make([][]byte, len(s.keys))
	for i, k := range s.keys {
		keys[i] = derive(k, "dunlin gossip v1", 32)
	}
	return keys
}

func derive(k [keyBytes]byte, label string, n int) []byte {
	b, err := hkdf.Key(sha256.New, k[:], nil, label, n)
	if err != nil {
		panic(fmt.Sprintf("keys: derive %d bytes for %s: %v", n, label, err)) // only for sizes that HKDF doesn't have
	}
	return b
}

// Load reads a secret's file. It refuses a file that others than its owner may read. errors.Is(err, fs.ErrNotExist) if there
// is none.
func Load(file string) (Secret, error) {
	f, err := os.Open(file)
	if err != nil {
		return Secret{}, fmt.Errorf("cluster secret: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Secret{}, fmt.Errorf("cluster secret: %w", err)
	}
	// Windows keeps rights in lists that the mode doesn't show.
	if open := st.Mode().Perm() & 0o077; open != 0 && runtime.GOOS != "windows" {
		return Secret{}, fmt.Errorf("%w: cluster secret: others may use %s (mode %04o), and whoever reads it can be any node of the cluster: chmod 600 %[2]s",
			dunlin.ErrForbidden, file, st.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(f, fileMax+1))
	if err != nil {
		return Secret{}, fmt.Errorf("cluster secret: %w", err)
	}
	if len(text) > fileMax {
		return Secret{}, fmt.Errorf("%w: cluster secret: %s has more than %d bytes", dunlin.ErrTooLarge, file, fileMax)
	}
	s, err := ParseSecret(string(text))
	if err != nil {
		return Secret{}, fmt.Errorf("%s: %w", file, err)
	}
	return s, nil
}

// Save writes the secret's file, readable by its owner alone. The file is the old one or the new one at every moment, and
// the new one survives a crash once Save returns.
func (s Secret) Save(file string) (err error) {
	if s.IsZero() {
		return fmt.Errorf("%w: save cluster secret: there is none", dunlin.ErrInvalid)
	}
	dir := filepath.Dir(file)
	f, err := os.CreateTemp(dir, ".secret-*") // mode 0600
	if err != nil {
		return fmt.Errorf("save cluster secret: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("save cluster secret: %w", errors.Join(err, ignoreMissing(os.Remove(f.Name()))))
		}
	}()
	_, err = f.WriteString("# The secret of a dunlin cluster: whoever has it can be any of its nodes.\n" + strings.ReplaceAll(s.String(), ",", "\n") + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), file); err != nil {
		return err
	}
	if runtime.GOOS == "windows" { // can't sync folders
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
