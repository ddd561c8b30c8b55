package httpapi

import (
	"errors"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts at the door. Route and status class are resolved once, so that a request only adds.
type metrics struct {
	requests     *prometheus.CounterVec
	seconds      *prometheus.HistogramVec
	panics       prometheus.Counter
	connsRefused prometheus.Counter
	abandoned    prometheus.Counter
	streamEvents prometheus.Counter
	streamLost   prometheus.Counter
}

// routeMetrics are a route's counters by status class (index 1 to 5), and its latency.
type routeMetrics struct {
	requests [6]prometheus.Counter
	seconds  prometheus.Observer
}

func (m *routeMetrics) observe(status int, took time.Duration) {
	m.requests[min(max(status/100, 1), 5)].Inc()
	m.seconds.Observe(took.Seconds())
}

func newMetrics(reg prometheus.Registerer, g *Gateway) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "dunlin_http_requests_total",
			Help: "Requests answered, by route and status class."}, []string{"method", "route", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "dunlin_http_request_seconds",
			Help: "Time from a request's header to its answer, by route.", Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, 1, 5}},
			[]string{"method", "route"}),
		panics:       counter("dunlin_http_panics_total", "Handlers that panicked and were answered with 500."),
		connsRefused: counter("dunlin_http_connections_refused_total", "Connections closed because the bound was reached."),
		abandoned:    counter("dunlin_http_uplinks_abandoned_total", "Uplinks whose client left, or was told to try again, before their commit was known."),
		streamEvents: counter("dunlin_http_stream_events_total", "Server-sent events written."),
		streamLost:   counter("dunlin_http_stream_cursor_lost_total", "Event streams that ended because their position was no longer kept."),
	}
	if reg == nil {
		return m, nil
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.requests, m.seconds, m.panics, m.connsRefused, m.abandoned, m.streamEvents, m.streamLost,
		gauge("dunlin_http_uplinks_in_flight", "Uplinks waiting for their commit.", func() float64 { return float64(g.inFlight.Load()) }),
		gauge("dunlin_http_streams", "Open event streams.", func() float64 { return float64(g.streams.Load()) }),
		gauge("dunlin_http_connections", "Open connections.", func() float64 { return float64(g.conns.Load()) }),
	} {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}

// route resolves a route's metrics. The children are made here so that they show 0 before the first request.
func (m *metrics) route(pattern string) routeMetrics {
	method, path, ok := strings.Cut(pattern, " ")
	if !ok {
		method, path = "any", pattern
	}
	r := routeMetrics{seconds: m.seconds.WithLabelValues(method, path)}
	for i, class := range []string{1: "1xx", 2: "2xx", 3: "3xx", 4: "4xx", 5: "5xx"} {
		if i > 0 {
			r.requests[i] = m.requests.WithLabelValues(method, path, class)
		}
	}
	return r
}
