package httpapi

import (
	"html/template"
	"net/http"
	"strings"
)

// registerRaw registers the handlers that huma does not serve.
func (g *Gateway) registerRaw(reg *registration) {
	reg.raw("POST /v1/devices/{id}/t", g.serveTelemetry)
	reg.raw("POST /v1/devices/{id}/c/{command}", g.serveResult)
	reg.raw("POST /v1/ingest", g.serveBatch)
	reg.raw("GET /v1/events", g.serveEvents)
	reg.raw("POST /v1/backtests", g.serveBacktest)
	reg.raw("GET /livez", func(c *call, _ *http.Request) { writeText(c, "ok\n") })
	reg.raw("GET /readyz", g.serveReady)
	reg.raw("GET /metrics", g.serveMetrics)
	reg.raw("GET /{$}", g.serveIndex)
}

func writeText(c *call, text string) {
	c.Header().Set("Content-Type", "text/plain; charset=utf-8")
	c.Header().Set("Cache-Control", "no-store")
	_, _ = c.Write([]byte(text))
}

func (g *Gateway) serveReady(c *call, r *http.Request) {
	if err := g.cfg.Ready(); err != nil {
		c.fail(r, &Problem{Type: problemURN + "not-ready", Title: "Not ready", Status: http.StatusServiceUnavailable, Detail: err.Error(), RetryAfter: 1})
		return
	}
	writeText(c, "ready\n")
}

func (g *Gateway) serveMetrics(c *call, r *http.Request) {
	if g.cfg.MetricsHandler == nil {
		c.fail(r, newProblem(http.StatusNotFound, "This node's metrics are not served here."))
		return
	}
	g.cfg.MetricsHandler.ServeHTTP(c, r)
}

// indexLinks are what a person who opens the address sees.
type indexLink struct{ Path, Text string }

func indexLinks() []indexLink {
	return []indexLink{
		{"/v1/devices", "devices"}, {"/v1/alerts?active=true", "active alerts"}, {"/v1/domains", "domains"}, {"/v1/plugins", "plugins"},
		{"/v1/deadletters", "inputs that a plugin failed on"}, {"/v1/events", "what is committed, live"}, {"/openapi.yaml", "this API, described"},
		{"/readyz", "whether the node takes work"}, {"/metrics", "metrics"}, {"/v1/version", "version"},
	}
}

func indexLines(base string) []string {
	return []string{
		"curl -H 'Content-Type: application/senml+json' -d '[{\"n\":\"temperature\",\"u\":\"Cel\",\"v\":21.5}]' " + base + "/v1/devices/fridge-1/t",
		"curl " + base + "/v1/devices/fridge-1/state",
		"curl '" + base + "/v1/devices/fridge-1/readings?from=-1h&bucket=5m'",
		"curl -N '" + base + "/v1/events?types=alert'",
	}
}

// serveIndex is the page at /: text for curl, HTML for a browser.
func (g *Gateway) serveIndex(c *call, r *http.Request) {
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	base := scheme + "://" + r.Host
	if strings.ContainsAny(r.Host, "'\"\\ $`;&|<>") { // it ends up in lines that people paste
		base = scheme + "://" + g.cfg.Addr
	}
	if offered(r.Header.Get("Accept"), "text/plain", "text/html") != "text/html" {
		var b strings.Builder
		b.WriteString("dunlin: devices in, state and alerts out\n\n")
		for _, l := range indexLinks() {
			b.WriteString("  " + base + l.Path + strings.Repeat(" ", max(1, 28-len(l.Path))) + l.Text + "\n")
		}
		b.WriteString("\nTry:\n")
		for _, l := range indexLines(base) {
			b.WriteString("  " + l + "\n")
		}
		writeText(c, b.String())
		return
	}
	h := c.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	_ = g.index.Execute(c, struct {
		Version string
		Links   []indexLink
		Lines   []string
	}{g.cfg.Version.Version, indexLinks(), indexLines(base)})
}

func indexTemplate() *template.Template {
	return template.Must(template.New("index").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>dunlin</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}
pre{overflow-x:auto;padding:.75rem;border:1px solid #8886;border-radius:.4rem}td{padding-right:2rem}</style>
<h1>dunlin</h1><p>Devices in, state and alerts out. {{with .Version}}Version {{.}}.{{end}}</p>
<table>{{range .Links}}<tr><td><a href="{{.Path}}"><code>{{.Path}}</code></a><td>{{.Text}}{{end}}</table>
<h2>Try</h2><pre>{{range .Lines}}{{.}}
{{end}}</pre></html>
`))
}
