package cli

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/dunlin-iot/dunlin/internal/load"
	"github.com/spf13/cobra"
)

func newBench(env Env) *cobra.Command {
	return group(&cobra.Command{Use: "bench", Short: "Measure a running node"}, newBenchIngest(env))
}

// ingestReport is what bench ingest prints with -o json.
type ingestReport struct {
	Protocol  string  `json:"protocol"`
	Clients   int     `json:"clients"`
	Rate      float64 `json:"rate,omitempty"`
	Seconds   float64 `json:"seconds"`
	Acked     int64   `json:"acked"`
	Refused   int64   `json:"refused"`
	PerSecond float64 `json:"per_second"`
	AckMS     [3]ms   `json:"ack_ms_p50_p99_max"`
	Alerts    int64   `json:"alerts"`
	AlertMS   *[3]ms  `json:"alert_ms_p50_p99_max,omitempty"`
}

// ms is milliseconds with three digits.
type ms float64

func (m ms) MarshalJSON() ([]byte, error) { return fmt.Appendf(nil, "%.3f", float64(m)), nil }

func newBenchIngest(_ Env) *cobra.Command {
	var out output
	cfg := load.Config{}
	mqtt, coap := "", ""
	alerts := false
	c := &cobra.Command{
		Use:   "ingest",
		Short: "Send readings as fast as they are acked, or at a rate, and time every ack",
		Example: "  dunlin bench ingest --protocol mqtt --clients 1000 --duration 10s\n" +
			"  dunlin bench ingest --protocol coap --clients 64 --rate 500 --alerts",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg.Addr = mqtt
			if cfg.Protocol == "coap" {
				cfg.Addr = coap
			}
			if cfg.Prefix == "" {
				cfg.Prefix = fmt.Sprintf("bench-%d", os.Getpid())
			}
			if alerts {
				cfg.Alerts, cfg.Flips = mqtt, 20
			}
			cfg.Progress = func(acked int64, d time.Duration) {
				fmt.Fprintf(c.ErrOrStderr(), "%4.0f s  %d acked\r", d.Seconds(), acked)
			}
			res, err := load.Run(c.Context(), cfg)
			if err != nil {
				return err
			}
			r := report(cfg, res)
			return out.print(c, r, func(w io.Writer) { r.table(w) })
		},
	}
	out.flag(c)
	fl := c.Flags()
	fl.StringVar(&cfg.Protocol, "protocol", "mqtt", "mqtt or coap")
	fl.StringVar(&mqtt, "mqtt", "127.0.0.1:1883", "address of the node's MQTT gateway")
	fl.StringVar(&coap, "coap", "127.0.0.1:5683", "address of the node's CoAP gateway")
	fl.IntVar(&cfg.Clients, "clients", 100, "connections or sockets, one uplink in flight each")
	fl.IntVar(&cfg.Devices, "devices", 0, "devices, shared out over the clients; default one each")
	fl.StringVar(&cfg.Prefix, "prefix", "", "of the device ids; default bench- and the process id")
	fl.Float64Var(&cfg.Rate, "rate", 0, "uplinks per second in all; 0: as fast as they are acked")
	fl.DurationVar(&cfg.Warmup, "warmup", 2*time.Second, "not counted")
	fl.DurationVar(&cfg.Duration, "duration", 10*time.Second, "counted")
	fl.StringVar(&cfg.User, "user", "", "MQTT user name")
	fl.StringVar(&cfg.Password, "password", "", "its secret")
	fl.BoolVar(&alerts, "alerts", false, "cause alerts of the example domain and time them too")
	return c
}

func report(cfg load.Config, res *load.Result) ingestReport {
	at := func(us int64) ms { return ms(float64(us) / 1000) }
	r := ingestReport{Protocol: cfg.Protocol, Clients: cfg.Clients, Rate: cfg.Rate, Seconds: res.Seconds, Acked: res.Acked,
		Refused: res.Refused, PerSecond: res.PerSecond(), Alerts: res.Alerts,
		AckMS: [3]ms{at(res.Ack.ValueAtQuantile(50)), at(res.Ack.ValueAtQuantile(99)), at(res.Ack.Max())}}
	if res.Alert != nil {
		r.AlertMS = &[3]ms{at(res.Alert.ValueAtQuantile(50)), at(res.Alert.ValueAtQuantile(99)), at(res.Alert.Max())}
	}
	return r
}

func (r ingestReport) table(w io.Writer) {
	row(w, "PROTOCOL", "CLIENTS", "ACKED", "REFUSED", "PER SECOND", "ACK P50", "ACK P99", "ACK MAX", "ALERTS", "ALERT P50", "ALERT P99")
	alert := [2]string{}
	if r.AlertMS != nil {
		alert = [2]string{fmt.Sprintf("%.1f ms", r.AlertMS[0]), fmt.Sprintf("%.1f ms", r.AlertMS[1])}
	}
	row(w, r.Protocol, fmt.Sprint(r.Clients), fmt.Sprint(r.Acked), fmt.Sprint(r.Refused), fmt.Sprintf("%.0f", r.PerSecond),
		fmt.Sprintf("%.1f ms", r.AckMS[0]), fmt.Sprintf("%.1f ms", r.AckMS[1]), fmt.Sprintf("%.1f ms", r.AckMS[2]),
		fmt.Sprint(r.Alerts), alert[0], alert[1])
}
