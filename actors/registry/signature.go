package registry

import (
	"fmt"
	"slices"
	"strings"

	"aead.dev/minisign"

	"github.com/dunlin-iot/dunlin"
)

// signatureBytesMax bounds a .minisig file: two comments and two signatures.
const signatureBytesMax = 8 << 10

// checkSigners says what is wrong with a domain's list of keys.
func checkSigners(keys []string) error {
	if len(keys) > signersMax {
		return invalid("a domain may name %d signers, not %d", signersMax, len(keys))
	}
	for _, k := range keys {
		if _, err := parseKey(k); err != nil {
			return err
		}
	}
	return nil
}

// parseKey reads a minisign public key: the second line of a .pub file.
func parseKey(s string) (key minisign.PublicKey, err error) {
	if err := key.UnmarshalText([]byte(strings.TrimSpace(s))); err != nil {
		return key, invalid("%q is no minisign public key; it is the line that begins with RW in the .pub file", cut32(s))
	}
	return key, nil
}

func cut32(s string) string { return s[:min(len(s), 64)] }

// verify checks a module's signature, with the key that came along, or with one that a domain of the tenant trusts.
func (r *Registry) verify(t dunlin.Tenant, set *dunlin.PluginSettings, module []byte) (*dunlin.PluginSignature, error) {
	if len(set.Signature) > signatureBytesMax {
		return nil, invalid("the signature has %d bytes, want at most %d", len(set.Signature), signatureBytesMax)
	}
	var sig minisign.Signature
	if err := sig.UnmarshalText([]byte(set.Signature)); err != nil {
		return nil, invalid("the signature is no minisign signature: %v", err)
	}
	keys := []string{strings.TrimSpace(set.Key)}
	if set.Key == "" {
		keys = r.signers(t)
	}
	for _, k := range keys {
		key, err := parseKey(k)
		if err != nil {
			return nil, err
		}
		if key.ID() != sig.KeyID {
			continue
		}
		if !minisign.Verify(key, module, []byte(set.Signature)) {
			return nil, invalid("the signature is not of this module, or not by key %s", k)
		}
		return &dunlin.PluginSignature{Key: key.String(), Comment: sig.TrustedComment, Sig: set.Signature}, nil
	}
	if set.Key != "" {
		return nil, invalid("the signature was made by key %X, not by the key given", sig.KeyID)
	}
	return nil, invalid("the signature was made by key %X, which no domain names as a signer; give the public key along", sig.KeyID)
}

// signers are the keys that domains of the tenant trust.
func (r *Registry) signers(t dunlin.Tenant) (keys []string) {
	for n, d := range r.view.Load().domains {
		if n.tenant == t {
			keys = append(keys, d.Signers...)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// signed says whether the domain may run the version of a plugin as far as signatures go.
func signed(d *dunlin.Domain, plugin string, v *dunlin.PluginVersion) error {
	if len(d.Signers) == 0 {
		return nil
	}
	for _, s := range v.Signatures {
		for _, k := range d.Signers {
			if strings.TrimSpace(k) == s.Key {
				return nil
			}
		}
	}
	what := "is not signed"
	if len(v.Signatures) > 0 {
		what = "is signed by others"
	}
	return fmt.Errorf("%w: domain %s requires plugins signed by one of its %d signers, and plugin %s, version %s, %s", dunlin.ErrForbidden, d.ID,
		len(d.Signers), plugin, nameOf(v), what)
}
