package gossip

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

// Bounds of what seeds may name.
const (
	seedsMax         = 256
	seedFileBytesMax = 64 << 10
)

// seed is an address to join, and what named it.
type seed struct{ addr, from string }

// String names the seed as the user did.
func (s seed) String() string {
	if s.from == s.addr {
		return s.addr
	}
	return s.from + " (" + s.addr + ")"
}

// resolve turns seeds into addresses, each once. What can't be resolved is an error, and the others go on.
func resolve(ctx context.Context, r Resolver, seeds []string) ([]seed, []error) {
	var (
		all  []seed
		errs []error
		had  = make(map[string]bool)
	)
	add := func(from string, addrs []string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", from, err))
		}
		for _, a := range addrs {
			if !had[a] && len(all) < seedsMax {
				had[a] = true
				all = append(all, seed{a, from})
			}
		}
	}
	for _, s := range seeds {
		path, ok := strings.CutPrefix(s, "file:")
		if !ok {
			addrs, err := lookup(ctx, r, s)
			add(s, addrs, err)
			continue
		}
		lines, err := ReadSeeds(path)
		if err != nil || len(lines) == 0 {
			add(s, nil, errors.Join(err, errNoSeeds(err)))
			continue
		}
		for _, line := range lines {
			addrs, err := lookup(ctx, r, line)
			add(s+" "+line, addrs, err)
		}
	}
	return all, errs
}

func errNoSeeds(err error) error {
	if err != nil {
		return nil
	}
	return fmt.Errorf("%w: no seeds in it", dunlin.ErrUnavailable)
}

// ReadSeeds reads a file of one seed a line; what follows a # is a comment.
func ReadSeeds(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", dunlin.ErrUnavailable, err)
	}
	defer func() { _ = f.Close() }() // read only
	var lines []string
	in := bufio.NewScanner(io.LimitReader(f, seedFileBytesMax))
	for in.Scan() {
		line, _, _ := strings.Cut(in.Text(), "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if strings.HasPrefix(line, "file:") {
			return nil, fmt.Errorf("%w: a file of seeds can't name another file (%s)", dunlin.ErrInvalid, line)
		}
		if lines = append(lines, line); len(lines) == seedsMax {
			break
		}
	}
	if err := in.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", dunlin.ErrInvalid, err)
	}
	return lines, nil
}

// lookup returns the addresses of a seed that is not a file.
func lookup(ctx context.Context, r Resolver, s string) ([]string, error) {
	if name, ok := strings.CutPrefix(s, "srv:"); ok {
		_, records, err := r.LookupSRV(ctx, "", "", name)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", dunlin.ErrUnavailable, err)
		}
		var (
			addrs []string
			errs  []error
		)
		for _, rec := range records {
			a, err := hosts(ctx, r, strings.TrimSuffix(rec.Target, "."), rec.Port)
			addrs, errs = append(addrs, a...), append(errs, err)
		}
		if len(records) == 0 {
			errs = append(errs, fmt.Errorf("%w: no SRV records", dunlin.ErrUnavailable))
		}
		return addrs, errors.Join(errs...)
	}
	host, port, err := parseSeed(strings.TrimPrefix(s, "dns:"))
	if err != nil {
		return nil, err
	}
	return hosts(ctx, r, host, port)
}

// parseSeed takes "host", "host:port", "[ip6]:port", "[ip6]" or "ip6" apart.
func parseSeed(s string) (host string, port uint16, err error) {
	host, port = s, DefaultPort
	switch {
	case net.ParseIP(s) != nil:
	case strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]"):
		host = s[1 : len(s)-1]
	case strings.Contains(s, ":"):
		if host, port, err = splitAddr(s); err == nil && port == 0 {
			port = DefaultPort
		}
	}
	if err != nil || host == "" || strings.ContainsAny(host, "/ \t[]") || strings.ContainsFunc(host, unprintable) ||
		strings.Contains(host, ":") && net.ParseIP(host) == nil {
		return "", 0, fmt.Errorf("%w: seed %q, want host, host:port, dns:name, srv:name or file:path", dunlin.ErrInvalid, s)
	}
	return host, port, nil
}

func hosts(ctx context.Context, r Resolver, host string, port uint16) ([]string, error) {
	ips := []string{host}
	if net.ParseIP(host) == nil {
		var err error
		if ips, err = r.LookupHost(ctx, host); err != nil {
			return nil, fmt.Errorf("%w: %w", dunlin.ErrUnavailable, err)
		}
	}
	addrs := make([]string, 0, len(ips))
	for _, ip := range ips {
		addrs = append(addrs, net.JoinHostPort(ip, strconv.Itoa(int(port))))
	}
	return addrs, nil
}
