package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/dunlin-iot/dunlin/cmd/dunlin/internal/builtin"
	"github.com/dunlin-iot/dunlin/runtime/config"
	"github.com/dunlin-iot/dunlin/runtime/node"
	"github.com/dunlin-iot/dunlin/runtime/observe"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// version is set by the linker.
var version = "unknown"

func newServer(env Env) *cobra.Command {
	var file, out string
	c := &cobra.Command{
		Use:   "server",
		Short: "Start a node that keeps its data",
		Long: "server starts a node from a YAML file, the environment (DUNLIN_HTTP, …) and flags, the later over the earlier.\n" +
			"With --cluster, nodes find each other by gossip and keep each shard on three of them; see `dunlin cluster`.\n" +
			"On loopback it is open until somebody has a credential. It refuses to be reachable from other machines\n" +
			"without device credentials and an API token, unless --insecure says that this is meant.",
		Example: "  dunlin server --data ./dunlin-data\n  dunlin server --config dunlin.yaml\n  DUNLIN_API_TOKEN=$(openssl rand -hex 24) dunlin server --config dunlin.yaml\n" +
			"  dunlin server --cluster 10.0.0.1:7946                     # others may join this node\n" +
			"  DUNLIN_CLUSTER_KEY=… dunlin server --cluster 10.0.0.2:7946 --join 10.0.0.1",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if out != "text" && out != "json" {
				return usageError{c.CommandPath(), fmt.Sprintf("output %q is neither text nor json", out)}
			}
			flags := map[string]any{}
			c.Flags().Visit(func(f *pflag.Flag) {
				if f.Name != "config" && f.Name != "output" {
					flags[configKey(f.Name)] = f.Value.String()
				}
			})
			cfg, err := config.Load(file, env.Getenv, flags)
			if err != nil {
				return err
			}
			cfg.Version = version
			return serve(c, env, cfg, out)
		},
	}
	fl := c.Flags()
	def := config.Default()
	fl.StringVar(&file, "config", "", "YAML file of settings")
	fl.StringVarP(&out, "output", "o", "text", "text, or json for one readiness line")
	fl.String("data", def.Data, "folder of the node's data")
	fl.String("http", def.HTTP, "address of the HTTP API")
	fl.String("mqtt", def.MQTT, "address of the MQTT gateway")
	fl.String("coap", def.CoAP, "address of the CoAP gateway")
	fl.String("admin", def.Admin, "address of metrics and profiles, loopback only; default none")
	fl.Bool("insecure", false, "be open to everybody, on any address")
	fl.String("default-domain", "", "domain of devices that are not registered; its policy says whether they may be")
	fl.String("name", "", "the node's name in the cluster; default the machine's")
	fl.String("zone", "", "rack, room or region of the node: replicas of a shard are spread over zones")
	fl.String("cluster", "", "host:port where other nodes reach this one (gossip; the next two ports are used, too); default alone")
	fl.String("advertise", "", "host that other nodes dial, if it is not the one of --cluster")
	fl.String("join", "", "members of the cluster to join, with commas: host, host:port, dns:name, srv:name, file:path")
	fl.Int("bootstrap-expect", 0, "how many new nodes found a cluster together")
	fl.Int("replication", def.Replication, "replicas of a shard, once there are as many nodes: 1, 3, 5 or 7; as the cluster is founded")
	fl.Duration("repair-after", def.RepairAfter, "how long a node may be dead before its replicas are made anew elsewhere")
	fl.String("log-level", def.LogLevel, "debug, info, warn or error")
	fl.String("log-format", def.LogFormat, "text or json")
	return c
}

func configKey(flag string) string {
	b := []byte(flag)
	for i := range b {
		if b[i] == '-' {
			b[i] = '_'
		}
	}
	return string(b)
}

func serve(c *cobra.Command, env Env, cfg config.Config, out string) error {
	obs, err := observe.Setup(env.Stderr, cfg.LogLevel, cfg.LogFormat)
	if err != nil {
		return err
	}
	n, err := node.Start(c.Context(), cfg, obs)
	if err != nil {
		return err
	}
	n.Offer(builtin.Module)
	a := n.Addrs()
	if out == "json" {
		line, err := json.Marshal(map[string]any{"http": a.HTTP, "mqtt": a.MQTT, "coap": a.CoAP, "admin": a.Admin, "cluster": n.ClusterAddr(), "pid": os.Getpid()})
		if err != nil {
			return err
		}
		fmt.Fprintf(env.Stdout, "%s\n", line)
	} else {
		fmt.Fprintf(env.Stdout, "dunlin %s is ready: http://%s  mqtt://%s  coap://%s  data %s\n", version, a.HTTP, a.MQTT, a.CoAP, cfg.Data)
	}
	select {
	case <-c.Context().Done():
	case <-n.Failed():
	}
	return n.Close()
}

func newVersion(_ Env) *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		info, _ := debug.ReadBuildInfo()
		goVersion := ""
		if info != nil {
			goVersion = info.GoVersion
		}
		fmt.Fprintf(c.OutOrStdout(), "dunlin %s %s\n", version, goVersion)
		return nil
	}}
}
