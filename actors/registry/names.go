package registry

import (
	"fmt"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

// cut cuts at the first slash; neither part may be empty.
func cut(key string) (before, after string, ok bool) {
	before, after, ok = strings.Cut(key, "/")
	return before, after, ok && before != "" && after != ""
}

func cutKey(key string) (dunlin.Tenant, string, bool) {
	t, rest, ok := cut(key)
	return dunlin.Tenant(t), rest, ok
}

// tenant fills in the default one.
func tenant(t dunlin.Tenant) dunlin.Tenant {
	if t == "" {
		return dunlin.DefaultTenant
	}
	return t
}

func notFound(what, name string) error {
	return fmt.Errorf("%w: %s %s", dunlin.ErrNotFound, what, name)
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", dunlin.ErrInvalid, fmt.Sprintf(format, args...))
}

// bounded reports a text that is too long.
func bounded(what, text string, most int) error {
	if len(text) > most {
		return invalid("%s has %d bytes, want at most %d", what, len(text), most)
	}
	return nil
}
