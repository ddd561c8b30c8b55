package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/payload"
)

// The representations of history. SenML has no words for buckets.
const (
	mediaJSON  = "application/json"
	mediaSenML = "application/senml+json"
	mediaCSV   = "text/csv"
)

// readingsInput is the query of a device's history.
type readingsInput struct {
	DevicePath
	ReadInput
	Metric []string    `query:"metric,explode" maxItems:"64" nullable:"false" doc:"Only these metrics; may be repeated"`
	From   timeParam   `query:"from" doc:"First moment: RFC 3339, now, or a span before now such as -1h or -7d; default: the beginning"`
	To     timeParam   `query:"to" doc:"Moment behind the last: as from; default: the end"`
	Bucket spanParam   `query:"bucket" doc:"Aggregate numbers per metric and this width, such as 5m, 1h or 1d, aligned to the epoch"`
	Order  string      `query:"order" enum:"asc,desc" default:"asc" doc:"desc: newest first"`
	Limit  int         `query:"limit" minimum:"1" maximum:"10000" default:"1000" doc:"Reports, or buckets, a page"`
	Cursor cursorParam `query:"cursor" doc:"Opaque; of a page's next link"`
}

type readingsOutput struct {
	ContentType  string `header:"Content-Type"`
	Link         string `header:"Link" doc:"rel=next: the next page"`
	CacheControl string `header:"Cache-Control"`
	Body         []byte
}

func (a *api) registerReadings() {
	page := schemaOf[readingsView](a)
	question(a, huma.Operation{OperationID: "get-device-readings", Method: http.MethodGet, Path: "/v1/devices/{id}/readings", Tags: []string{"devices"},
		Summary: "Get a device's history, as it was reported or in buckets",
		Description: "Answers application/json; application/senml+json (not with bucket) or text/csv if Accept asks for it. " +
			"The next page's link is in the Link header, and in JSON also in next. Relative times are made absolute in it.",
		Responses: map[string]*huma.Response{"200": {Description: "A page", Content: map[string]*huma.MediaType{
			mediaJSON: {Schema: page}, mediaSenML: {}, mediaCSV: {}}}}}, a.g.readings)
}

func (g *Gateway) readings(ctx context.Context, c *call, in *readingsInput) (*readingsOutput, error) {
	q, err := g.readingsQuery(c, in)
	if err != nil {
		return nil, err
	}
	offers := []string{mediaJSON, mediaSenML, mediaCSV}
	if q.Bucket > 0 {
		offers = []string{mediaJSON, mediaCSV}
	}
	media := offered(c.accept, offers...)
	if media == "" {
		return nil, newProblem(http.StatusNotAcceptable, fmt.Sprintf("Accept takes none of %v", offers))
	}
	found, err := g.deps.Inspector.Readings(ctx, q)
	if err != nil {
		return nil, err
	}
	next := ""
	if found.Next != "" {
		next = nextLink(c.path, in.Read.again(in.query(q)), found.Next)
	}
	out := &readingsOutput{ContentType: media, CacheControl: "no-store"}
	if next != "" {
		out.Link = "<" + next + `>; rel="next"`
	}
	switch {
	case media == mediaSenML:
		out.Body = payload.AppendSenML(nil, q.Device, found.Rows)
	case media == mediaCSV && q.Bucket > 0:
		out.ContentType += "; charset=utf-8; header=present"
		out.Body = appendBucketsCSV(nil, found.Buckets)
	case media == mediaCSV:
		out.ContentType += "; charset=utf-8; header=present"
		out.Body = appendReadingsCSV(nil, found.Rows)
	default:
		out.Body = appendReadingsJSON(nil, q, found, next)
	}
	return out, nil
}

// readingsQuery checks what huma's schema can't.
func (g *Gateway) readingsQuery(c *call, in *readingsInput) (dunlin.ReadingsQuery, error) {
	now := g.cfg.Clock()
	q := dunlin.ReadingsQuery{DeviceKey: c.key(in.ID), Metrics: in.Metric, From: in.From.resolve(now), To: in.To.resolve(now),
		Newest: in.Order == "desc", Limit: in.Limit, Bucket: in.Bucket.d, Cursor: in.Cursor.s}
	for i, m := range in.Metric {
		if err := dunlin.ValidateMetric(m); err != nil {
			return q, invalidValue(fmt.Sprintf("query.metric[%d]", i), err.Error(), m)
		}
	}
	if q.From != 0 && q.To != 0 && q.From >= q.To {
		return q, invalidValue("query.to", fmt.Sprintf("the range is empty: from %s, to %s", q.From, q.To), nil)
	}
	if q.Bucket%time.Microsecond != 0 {
		return q, invalidValue("query.bucket", "a bucket is whole microseconds wide", q.Bucket.String())
	}
	return q, nil
}

// query is the input as a query again, with absolute times: all pages of one answer are of the same range.
func (in *readingsInput) query(q dunlin.ReadingsQuery) url.Values {
	v := url.Values{"limit": {strconv.Itoa(q.Limit)}}
	if len(q.Metrics) > 0 {
		v["metric"] = q.Metrics
	}
	if q.From != 0 {
		v.Set("from", q.From.String())
	}
	if q.To != 0 {
		v.Set("to", q.To.String())
	}
	if q.Bucket > 0 {
		v.Set("bucket", q.Bucket.String())
	}
	if q.Newest {
		v.Set("order", "desc")
	}
	return v
}

// appendReadingsJSON writes a readingsView.
func appendReadingsJSON(dst []byte, q dunlin.ReadingsQuery, p *dunlin.ReadingsPage, next string) []byte {
	dst = append(dst, `{"device":`...)
	dst = appendString(dst, string(q.Device))
	if q.Bucket > 0 {
		dst = append(dst, `,"buckets":[`...)
		for i := range p.Buckets {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendBucket(dst, &p.Buckets[i])
		}
		dst = append(dst, ']')
	} else {
		dst = append(dst, `,"readings":`...)
		dst = appendRecords(dst, p.Rows)
	}
	if next != "" {
		dst = append(dst, `,"next":`...)
		dst = appendString(dst, next)
	}
	return append(dst, "}\n"...)
}

func appendReadingsCSV(dst []byte, rows []dunlin.Record) []byte {
	dst = append(dst, "time,metric,value,unit\r\n"...)
	for i := range rows {
		r := &rows[i]
		dst = r.Time.Std().AppendFormat(dst, time.RFC3339Nano)
		dst = append(csvField(append(dst, ','), r.Metric), ',')
		switch r.Kind {
		case dunlin.Number:
			dst = appendCSVNumber(dst, r.Num)
		case dunlin.Text:
			dst = csvField(dst, r.Str)
		default:
			dst = appendValueBare(dst, r)
		}
		dst = append(csvField(append(dst, ','), r.Unit), "\r\n"...)
	}
	return dst
}

func appendBucketsCSV(dst []byte, buckets []dunlin.Bucket) []byte {
	dst = append(dst, "start,metric,count,min,max,mean,first,last\r\n"...)
	for i := range buckets {
		b := &buckets[i]
		dst = b.Start.Std().AppendFormat(dst, time.RFC3339Nano)
		dst = append(csvField(append(dst, ','), b.Metric), ',')
		dst = strconv.AppendInt(dst, int64(b.Count), 10)
		for _, f := range [...]float64{b.Min, b.Max, b.Mean, b.First, b.Last} {
			dst = appendCSVNumber(append(dst, ','), f)
		}
		dst = append(dst, "\r\n"...)
	}
	return dst
}

// appendCSVNumber is appendNumber without the quotes around what JSON lacks.
func appendCSVNumber(dst []byte, f float64) []byte {
	n := len(dst)
	dst = appendNumber(dst, f)
	return unquote(dst, n)
}

func appendValueBare(dst []byte, r *dunlin.Record) []byte {
	n := len(dst)
	dst = appendValue(dst, r)
	return unquote(dst, n)
}

// unquote takes the quotes off what was appended from n on, if it has them.
func unquote(dst []byte, n int) []byte {
	if len(dst) > n && dst[n] == '"' {
		dst = append(dst[:n], dst[n+1:len(dst)-1]...)
	}
	return dst
}
