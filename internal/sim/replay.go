package sim

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/dunlin-iot/dunlin/internal/load"
)

// Replay describes the replay of a CSV file: a header line, then "timestamp,value" rows, timestamps in RFC 3339 or
// "2006-01-02 15:04:05" (UTC).
type Replay struct {
	Protocol string // "mqtt" or "coap"
	Addr     string
	Device   string
	Metric   string  // default "value"
	Unit     string  // SenML unit, "" for none
	Pack     int     // readings per message, 1 to 50; default 20
	Speed    float64 // how many times faster than recorded; 0: as fast as the node acks
	User     string
	Password string
	Progress func(rows int) // told after each ack
}

// Point is a row of the file.
type Point struct {
	At    time.Time
	Value float64
}

// ReadCSV parses a whole file of points; the error names the line.
func ReadCSV(r io.Reader) ([]Point, error) {
	in := csv.NewReader(r)
	in.FieldsPerRecord = 2
	in.ReuseRecord = true
	if _, err := in.Read(); err != nil {
		return nil, fmt.Errorf("csv: header: %w", err)
	}
	var points []Point
	for {
		row, err := in.Read()
		if errors.Is(err, io.EOF) {
			return points, nil
		}
		if err != nil {
			return nil, fmt.Errorf("csv: %w", err)
		}
		line, _ := in.FieldPos(0)
		at, err := parseTime(row[0])
		if err != nil {
			return nil, fmt.Errorf("csv: line %d: %w", line, err)
		}
		v, err := strconv.ParseFloat(row[1], 64)
		if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("csv: line %d: %q is not a finite number", line, row[1])
		}
		points = append(points, Point{at, v})
	}
}

func parseTime(s string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	t, err := time.Parse(time.DateTime, s)
	if err != nil {
		return t, fmt.Errorf("timestamp %q is neither RFC 3339 nor 2006-01-02 15:04:05", s)
	}
	return t, nil
}

// Run sends the points in order and returns how many were acked.
func (p Replay) Run(ctx context.Context, points []Point) (acked int, err error) {
	if p.Metric == "" {
		p.Metric = "value"
	}
	if p.Pack <= 0 {
		p.Pack = 20
	}
	p.Pack = min(p.Pack, 50)
	c, err := load.Dial(p.Protocol, p.Addr, p.Device, p.User, p.Password)
	if err != nil {
		return 0, fmt.Errorf("replay: %w", err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, c.Close)
	defer stop()
	start := time.Now()
	for len(points) > 0 {
		n := min(p.Pack, len(points))
		if p.Speed > 0 {
			due := start.Add(time.Duration(float64(points[n-1].At.Sub(points[0].At)) / p.Speed))
			start = due
			if err := waitUntil(ctx, due); err != nil {
				return acked, err
			}
		}
		body := p.pack(points[:n])
		for {
			if err = c.Send(p.Device, body); !errors.Is(err, load.ErrRefused) {
				break
			}
			if err := waitUntil(ctx, time.Now().Add(time.Second)); err != nil {
				return acked, err
			}
		}
		if ctx.Err() != nil {
			return acked, context.Cause(ctx)
		}
		if err != nil {
			return acked, fmt.Errorf("replay: after %d rows: %w", acked, err)
		}
		acked += n
		points = points[n:]
		if p.Progress != nil {
			p.Progress(acked)
		}
	}
	return acked, nil
}

// pack makes a SenML pack: the base time is the first point's, the others' times are relative to it.
func (p Replay) pack(points []Point) []byte {
	var b strings.Builder
	for i, pt := range points {
		if i == 0 {
			fmt.Fprintf(&b, `[{"bn":"%s:","n":"%s",`, p.Device, p.Metric)
			if p.Unit != "" {
				fmt.Fprintf(&b, `"bu":"%s",`, p.Unit)
			}
			fmt.Fprintf(&b, `"bt":%d.%06d,`, pt.At.Unix(), pt.At.Nanosecond()/1000)
		} else {
			fmt.Fprintf(&b, `,{"n":"%s","t":%s,`, p.Metric, strconv.FormatFloat(pt.At.Sub(points[0].At).Seconds(), 'f', -1, 64))
		}
		fmt.Fprintf(&b, `"v":%s}`, strconv.FormatFloat(pt.Value, 'g', -1, 64))
	}
	b.WriteByte(']')
	return []byte(b.String())
}

func waitUntil(ctx context.Context, t time.Time) error {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
