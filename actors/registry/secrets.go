package registry

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"

	"github.com/dunlin-iot/dunlin"
)

// Secrets that the node makes are bearer tokens, and work as passwords too:
//
//	dnl_<kind>_<id>_<43 characters>
//	     │      │    └ 32 random bytes, base64url
//	     │      └ the credential's id: device, user or token name
//	     └ d device, g gateway, a application, o operator
//
// Nobody guesses 256 random bits, so a salted SHA-256 keeps them safely and is checked in a microsecond. Secrets that
// people choose are kept as argon2id.
const (
	tokenPrefix    = "dnl_"
	tokenRandom    = 32
	tokenRandomLen = 43
)

// Of argon2id (RFC 9106; OWASP's parameters of 2024): about 20 ms and 19 MiB.
const (
	argonTime    = 2
	argonMemory  = 19 << 10 // KiB
	argonThreads = 1
)

const saltBytes = 16

var kindLetters = [...]struct {
	letter byte
	kind   dunlin.CredentialKind
}{
	{'d', dunlin.CredentialDevice},
	{'g', dunlin.CredentialGateway},
	{'a', dunlin.CredentialApplication},
	{'o', dunlin.CredentialOperator},
}

func principalKind(k dunlin.CredentialKind) dunlin.PrincipalKind {
	switch k {
	case dunlin.CredentialDevice:
		return dunlin.PrincipalDevice
	case dunlin.CredentialGateway:
		return dunlin.PrincipalGateway
	case dunlin.CredentialApplication:
		return dunlin.PrincipalApplication
	case dunlin.CredentialOperator:
		return dunlin.PrincipalOperator
	}
	return dunlin.PrincipalNone
}

// makeToken makes a secret for a credential.
func makeToken(kind dunlin.CredentialKind, id string) string {
	var random [tokenRandom]byte
	_, _ = rand.Read(random[:]) // crypto/rand never fails: it ends the process instead
	for _, k := range kindLetters {
		if k.kind == kind {
			return tokenPrefix + string(k.letter) + "_" + id + "_" + base64.RawURLEncoding.EncodeToString(random[:])
		}
	}
	panic("token of kind " + string(kind))
}

// parseToken reads whose a token says it is.
func parseToken(token string) (kind dunlin.CredentialKind, id string, ok bool) {
	rest, ok := strings.CutPrefix(token, tokenPrefix)
	end := len(rest) - tokenRandomLen - 1
	if !ok || end < 3 || rest[1] != '_' || rest[end] != '_' {
		return "", "", false
	}
	for _, k := range kindLetters {
		if k.letter == rest[0] {
			return k.kind, rest[2:end], true
		}
	}
	return "", "", false
}

// The hashes as they are kept: "s256$salt$hash" and "argon2id$salt$hash", in base64.
const (
	schemeFast = "s256"
	schemeSlow = "argon2id"
)

func hashSecret(scheme string, secret []byte) string {
	var salt [saltBytes]byte
	_, _ = rand.Read(salt[:])
	return fmt.Sprintf("%s$%s$%s", scheme, base64.RawStdEncoding.EncodeToString(salt[:]),
		base64.RawStdEncoding.EncodeToString(digest(scheme, salt[:], secret)))
}

func digest(scheme string, salt, secret []byte) []byte {
	if scheme == schemeSlow {
		return argon2.IDKey(secret, salt, argonTime, argonMemory, argonThreads, sha256.Size)
	}
	h := sha256.New()
	h.Write(salt)
	h.Write(secret)
	return h.Sum(nil)
}

// slow reports whether checking a hash takes long.
func slow(hash string) bool { return strings.HasPrefix(hash, schemeSlow+"$") }

// matches reports whether the secret is the one that was hashed. What doesn't parse matches nothing.
func matches(hash string, secret []byte) bool {
	parts := strings.Split(hash, "$")
	if len(parts) != 3 || parts[0] != schemeFast && parts[0] != schemeSlow {
		return false
	}
	salt, err := base64.RawStdEncoding.DecodeString(parts[1])
	if err != nil {
		return false
	}
	want, err := base64.RawStdEncoding.DecodeString(parts[2])
	if err != nil || len(want) != sha256.Size {
		return false
	}
	return subtle.ConstantTimeCompare(digest(parts[0], salt, secret), want) == 1
}
