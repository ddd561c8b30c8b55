// Package config is the one reader of flags, environment and file. The zero file is a lone node on loopback.
// Part of the runtime; no compatibility promise before v1.
package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/rawbytes"
	"github.com/knadh/koanf/v2"
)

// Config is what a node is told. Each field's key is its koanf tag; the environment variable is DUNLIN_ and the key in
// capitals with underscores for dots.
type Config struct {
	Data             string         `koanf:"data"`                 // folder; default ./dunlin-data
	HTTP             string         `koanf:"http"`                 // host:port; default 127.0.0.1:8080
	MQTT             string         `koanf:"mqtt"`                 // host:port; default 127.0.0.1:1883
	CoAP             string         `koanf:"coap"`                 // host:port; default 127.0.0.1:5683
	Admin            string         `koanf:"admin"`                // host:port of pprof and metrics, loopback only; default "" (none)
	Shards           int            `koanf:"shards"`               // 1 to 1024; default 64; fixed when the data folder is made
	DefaultDomain    string         `koanf:"default_domain"`       // where unknown devices land; default none: they are refused
	Insecure         bool           `koanf:"insecure"`             // open to everybody, on any address
	APIToken         string         `koanf:"api_token"`            // an operator's bearer token, at least 16 bytes
	WindowMax        time.Duration  `koanf:"window_max"`           // how long a sparse uplink may wait for company; default 9ms
	CacheBytes       int64          `koanf:"cache_bytes"`          // block cache; default 32 MiB
	ArchiveAge       time.Duration  `koanf:"archive_age"`          // how long the archived log is kept; default 720h
	ArchiveBytes     int64          `koanf:"archive_bytes"`        // how much of it; default 4 GiB
	Name             string         `koanf:"name"`                 // the node's name in the cluster; default the machine's, or what the data folder says
	Zone             string         `koanf:"zone"`                 // rack, room or region: replicas of a shard are spread over zones
	Cluster          string         `koanf:"cluster"`              // host:port where other nodes reach this one: gossip (TCP and UDP); the next two ports carry replication and calls. Default "": alone
	Advertise        string         `koanf:"advertise"`            // host that other nodes dial, if it is not the one of cluster
	Join             []string       `koanf:"join"`                 // members to join: host, host:port, dns:name, srv:name, file:path
	Expect           int            `koanf:"bootstrap_expect"`     // how many nodes found a cluster together; default: this one alone
	ClusterKey       string         `koanf:"cluster_key"`          // the cluster's secret; default: made by the first node, in <data>/cluster.key
	Replication      int            `koanf:"replication"`          // replicas a shard shall have, once there are as many nodes; default 3
	RepairAfter      time.Duration  `koanf:"repair_after"`         // a dead node's replicas are made anew elsewhere; default 5m
	PluginCallTime   time.Duration  `koanf:"plugin_call_time"`     // processor time that a plugin may take for a batch, 1ms to 1s; default 9ms
	PluginDomainTime time.Duration  `koanf:"plugin_domain_time"`   // processor time in a second for one domain's plugins; default 0: what others leave
	PluginTenantTime time.Duration  `koanf:"plugin_tenant_time"`   // the same for all domains of a tenant together
	PluginMemory     int64          `koanf:"plugin_memory_bytes"`  // of one instance, 1 MiB to 4 GiB; default 64 MiB
	PluginsMemory    int64          `koanf:"plugins_memory_bytes"` // of all instances; default 0: a quarter of the machine's
	LogLevel         string         `koanf:"log_level"`            // debug, info, warn, error; default info
	LogFormat        string         `koanf:"log_format"`           // text or json; default text
	Credentials      []DeviceSecret `koanf:"credentials"`          // made at start, if they are not there yet
	Open             bool           `koanf:"-"`                    // set by dev, and for a server by whether anyone has credentials
	Version          string         `koanf:"-"`                    // of the binary
}

// DeviceSecret is a device's or gateway's credential given in the file.
type DeviceSecret struct {
	ID     string `koanf:"id"`
	Kind   string `koanf:"kind"` // device (default), gateway or application
	Domain string `koanf:"domain"`
	Secret string `koanf:"secret"` // at least 12 bytes
}

// Default is what an empty file means.
func Default() Config {
	return Config{Data: "dunlin-data", HTTP: "127.0.0.1:8080", MQTT: "127.0.0.1:1883", CoAP: "127.0.0.1:5683", Shards: 64,
		WindowMax: 9 * time.Millisecond, CacheBytes: 32 << 20, ArchiveAge: 720 * time.Hour, ArchiveBytes: 4 << 30,
		Replication: 3, RepairAfter: 5 * time.Minute, PluginCallTime: 9 * time.Millisecond, PluginMemory: 64 << 20,
		LogLevel: "info", LogFormat: "text"}
}

// keys are the known keys, in the order of the struct.
func keys() []string {
	var ks []string
	t := reflect.TypeFor[Config]()
	for i := range t.NumField() {
		if k := t.Field(i).Tag.Get("koanf"); k != "-" {
			ks = append(ks, k)
		}
	}
	return ks
}

// Load merges, the later over the earlier: Default, the YAML file (if file is not ""), the environment (getenv) and the
// flags (key → value, only those that were given). An unknown key is an error that names the known ones.
func Load(file string, getenv func(string) string, flags map[string]any) (Config, error) {
	k := koanf.New(".")
	if file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return Config{}, fmt.Errorf("config: %w", err)
		}
		if err := k.Load(rawbytes.Provider(b), yaml.Parser()); err != nil {
			return Config{}, fmt.Errorf("config: %s: %w", file, err)
		}
	}
	known := keys()
	for _, key := range k.Keys() {
		if top, _, _ := strings.Cut(key, "."); !slices.Contains(known, top) {
			return Config{}, fmt.Errorf("config: %s: unknown key %q; the keys are %s", file, key, strings.Join(known, ", "))
		}
	}
	env := map[string]any{}
	for _, key := range known {
		if v := getenv("DUNLIN_" + strings.ToUpper(key)); v != "" && key != "credentials" {
			env[key] = v
		}
	}
	for _, m := range []map[string]any{env, flags} {
		if err := k.Load(confmap.Provider(m, "."), nil); err != nil {
			return Config{}, fmt.Errorf("config: %w", err)
		}
	}
	c := Default()
	if err := k.Unmarshal("", &c); err != nil {
		return Config{}, fmt.Errorf("config: %w", err)
	}
	c.Join = split(c.Join)
	return c, c.Validate()
}

// split takes members to join apart: a flag and the environment give several as one text with commas.
func split(joined []string) (out []string) {
	for _, s := range joined {
		for one := range strings.SplitSeq(s, ",") {
			if one = strings.TrimSpace(one); one != "" {
				out = append(out, one)
			}
		}
	}
	return out
}

// Validate says everything that is wrong at once.
func (c *Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("config: %s: %s", key, fmt.Sprintf(format, args...)))
	}
	for _, a := range []struct{ key, addr string }{{"http", c.HTTP}, {"mqtt", c.MQTT}, {"coap", c.CoAP}, {"admin", c.Admin}} {
		if a.addr == "" && a.key == "admin" {
			continue
		}
		if _, _, err := net.SplitHostPort(a.addr); err != nil {
			bad(a.key, "%q is not host:port", a.addr)
		}
	}
	if c.Admin != "" && !Loopback(c.Admin) {
		bad("admin", "%s is not a loopback address; profiles are for this machine only", c.Admin)
	}
	if c.Shards < 1 || c.Shards > 1024 {
		bad("shards", "%d is not between 1 and 1024", c.Shards)
	}
	if c.DefaultDomain != "" {
		if err := dunlin.DomainID(c.DefaultDomain).Validate(); err != nil {
			bad("default_domain", "%v", err)
		}
	}
	if c.APIToken != "" && len(c.APIToken) < 16 {
		bad("api_token", "has %d bytes; an operator's token has at least 16", len(c.APIToken))
	}
	if c.WindowMax < 0 || c.WindowMax > 100*time.Millisecond {
		bad("window_max", "%v is not between 0 and 100ms", c.WindowMax)
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel) {
		bad("log_level", "%q is none of debug, info, warn, error", c.LogLevel)
	}
	if c.LogFormat != "text" && c.LogFormat != "json" {
		bad("log_format", "%q is neither text nor json", c.LogFormat)
	}
	c.validateCluster(bad)
	c.validatePlugins(bad)
	for i, s := range c.Credentials {
		if len(s.Secret) < 12 {
			bad(fmt.Sprintf("credentials[%d]", i), "the secret of %q has %d bytes; it needs 12", s.ID, len(s.Secret))
		}
		if s.Kind != "" && !slices.Contains([]string{"device", "gateway", "application"}, s.Kind) {
			bad(fmt.Sprintf("credentials[%d]", i), "kind %q is none of device, gateway, application", s.Kind)
		}
	}
	return errors.Join(errs...)
}

func (c *Config) validateCluster(bad func(key, format string, args ...any)) {
	if c.Name != "" && len(c.Name) > dunlin.NameBytesMax || c.Name != "" && dunlin.DeviceID(c.Name).Validate() != nil {
		bad("name", "%q: a node's name is 1 to %d letters, digits and .-_", c.Name, dunlin.NameBytesMax)
	}
	if len(c.Zone) > dunlin.NameBytesMax {
		bad("zone", "has %d bytes, at most %d", len(c.Zone), dunlin.NameBytesMax)
	}
	if c.Cluster != "" {
		if _, port, err := net.SplitHostPort(c.Cluster); err != nil || port == "" {
			bad("cluster", "%q is not host:port; 7946 is the usual port", c.Cluster)
		}
	}
	if c.Expect < 0 || c.Expect > 99 {
		bad("bootstrap_expect", "%d is not between 0 and 99", c.Expect)
	}
	if c.Cluster == "" && (len(c.Join) > 0 || c.Expect > 1) {
		bad("cluster", "is needed with join and bootstrap_expect: host:port where the other nodes reach this one, e.g. 10.0.0.2:7946")
	}
	if c.Replication < 1 || c.Replication > 7 || c.Replication%2 == 0 {
		bad("replication", "%d is none of 1, 3, 5, 7", c.Replication)
	}
	if c.RepairAfter < time.Second || c.RepairAfter > 7*24*time.Hour {
		bad("repair_after", "%v is not between 1s and 168h", c.RepairAfter)
	}
}

func (c *Config) validatePlugins(bad func(key, format string, args ...any)) {
	if c.PluginCallTime < time.Millisecond || c.PluginCallTime > time.Second {
		bad("plugin_call_time", "%v is not between 1ms and 1s", c.PluginCallTime)
	}
	for _, f := range []struct {
		key string
		of  time.Duration
	}{{"plugin_domain_time", c.PluginDomainTime}, {"plugin_tenant_time", c.PluginTenantTime}} {
		if f.of != 0 && (f.of < time.Millisecond || f.of > 1024*time.Second) {
			bad(f.key, "%v is neither 0 (no budget) nor between 1ms and 1024s: it is processor time for each second", f.of)
		}
	}
	if c.PluginMemory < 1<<20 || c.PluginMemory > 4<<30 {
		bad("plugin_memory_bytes", "%d is not between 1 MiB and 4 GiB", c.PluginMemory)
	}
	if c.PluginsMemory != 0 && c.PluginsMemory < c.PluginMemory {
		bad("plugins_memory_bytes", "%d is less than one instance may have (plugin_memory_bytes: %d)", c.PluginsMemory, c.PluginMemory)
	}
}

// Loopback reports whether host:port can be reached from this machine only. A name counts only if it is localhost.
func Loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// Exposed lists the addresses of the gateways that other machines can reach.
func (c *Config) Exposed() []string {
	var out []string
	for _, a := range []string{c.HTTP, c.MQTT, c.CoAP} {
		if !Loopback(a) {
			out = append(out, a)
		}
	}
	return out
}
