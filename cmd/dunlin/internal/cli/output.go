package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/dunlin-iot/dunlin"
	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"
)

// output is the -o flag: table for people, json and yaml for programs.
type output struct{ format string }

func (o *output) flag(c *cobra.Command) {
	c.Flags().StringVarP(&o.format, "output", "o", "table", "table, json or yaml")
}

// print writes v as JSON or YAML, or calls table for people.
func (o *output) print(c *cobra.Command, v any, table func(w io.Writer)) error {
	w := c.OutOrStdout()
	switch o.format {
	case "table":
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		table(tw)
		return tw.Flush()
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case "yaml":
		return printYAML(w, v)
	}
	return usageError{c.CommandPath(), fmt.Sprintf("output %q is none of table, json, yaml", o.format)}
}

// printYAML goes through JSON, so that both have the same names and forms.
func printYAML(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var node yaml.Node
	if err := yaml.Unmarshal(b, &node); err != nil { // JSON is YAML; a node keeps the order of keys
		return err
	}
	block(&node)
	var buf bytes.Buffer
	enc := yaml.NewEncoder(&buf)
	enc.SetIndent(2)
	if err := enc.Encode(&node); err != nil {
		return err
	}
	_, err = w.Write(buf.Bytes())
	return err
}

// block turns JSON's flow style into YAML's block style.
func block(n *yaml.Node) {
	n.Style &^= yaml.FlowStyle
	if n.Kind == yaml.ScalarNode && n.Tag == "!!str" {
		n.Style = 0
	}
	for _, c := range n.Content {
		block(c)
	}
}

// row writes one line of a table; empty cells show as "-", so that columns stay countable for scripts.
func row(w io.Writer, cells ...string) {
	for i, c := range cells {
		if cells[i] = printable(c); c == "" {
			cells[i] = "-"
		}
	}
	fmt.Fprintln(w, strings.Join(cells, "\t"))
}

// printable writes what a terminal would obey (escapes, line breaks) the way Go quotes it. Texts come from devices and
// plugins, and whoever holds a device must not be able to write on its operator's screen.
func printable(s string) string {
	if strings.IndexFunc(s, unprintable) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unprintable(r) {
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

func unprintable(r rune) bool { return !unicode.IsPrint(r) }

func clock(t dunlin.Time) string {
	if t == 0 {
		return ""
	}
	return t.Std().Format("2006-01-02 15:04:05Z")
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

func value(v any) string {
	switch v := v.(type) {
	case float64:
		return number(v)
	case nil:
		return ""
	}
	return fmt.Sprint(v)
}

// cut shortens text to n runes for a table.
func cut(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}

func ago(t dunlin.Time, now time.Time) string {
	if t == 0 {
		return ""
	}
	d := now.Sub(t.Std())
	switch {
	case d < 0:
		return "now"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	}
	return fmt.Sprintf("%dd ago", int(d.Hours()/24))
}
