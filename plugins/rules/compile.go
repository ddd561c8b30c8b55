package rules

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"

	"github.com/dunlin-iot/dunlin"
)

// What an expression may name besides metrics. A metric whose name is no identifier is value["its/name"].
const (
	varValue    = "value"      // metric → its newest value
	varPrevious = "previous"   // metric → the value before
	varRate     = "per_minute" // metric → change a minute between the two
	varNow      = "now"        // the reading's time
	varDevice   = "device"
)

var tables = []string{varValue, varPrevious, varRate}

// parsedRule is a rule whose expressions are parsed.
type parsedRule struct {
	rule               *Rule
	when, clear, value *cel.Ast
	metrics            []string // that when, clear and value name
}

// program is a compiled expression.
type program struct {
	run cel.Program
}

func base(vars ...string) (*cel.Env, error) {
	table := cel.MapType(cel.StringType, cel.DynType)
	opts := []cel.EnvOption{cel.CrossTypeNumericComparisons(true), cel.ParserExpressionSizeLimit(exprBytesMax), cel.ParserRecursionLimit(32),
		cel.ClearMacros(), cel.Macros(cel.HasMacro), cel.Variable(varValue, table), cel.Variable(varPrevious, table), cel.Variable(varRate, table),
		cel.Variable(varNow, cel.TimestampType), cel.Variable(varDevice, cel.StringType)}
	for _, v := range vars {
		opts = append(opts, cel.Variable(v, cel.DynType))
	}
	return cel.NewEnv(opts...)
}

func parseRule(r *Rule) (*parsedRule, error) {
	if err := dunlin.ValidatePluginName(r.Name); err != nil {
		return nil, fmt.Errorf("its name is the alert's: %v", err)
	}
	if r.Severity == 0 {
		r.Severity = dunlin.Warning
	}
	if r.For < 0 || r.ClearFor < 0 || time.Duration(r.For) > holdMax || time.Duration(r.ClearFor) > holdMax {
		return nil, fmt.Errorf("for and clear_for are between 0s and %v", holdMax)
	}
	if len(r.Text) > textBytesMax {
		return nil, fmt.Errorf("the text has %d bytes, at most %d are allowed", len(r.Text), textBytesMax)
	}
	env, err := base()
	if err != nil {
		return nil, err
	}
	p := &parsedRule{rule: r}
	for _, e := range []struct {
		what, src string
		to        **cel.Ast
	}{{"when", r.When, &p.when}, {"clear", r.Clear, &p.clear}, {"value", r.Value, &p.value}} {
		if e.src == "" {
			if e.what == "when" {
				return nil, fmt.Errorf("when is missing: the condition that raises the alert, such as temp > 8")
			}
			continue
		}
		if *e.to, err = p.parse(env, e.src); err != nil {
			return nil, fmt.Errorf("%s: %v", e.what, err)
		}
	}
	if len(p.metrics) == 0 {
		return nil, fmt.Errorf("when names no metric, so that nothing would ever make it true")
	}
	if r.Value == "" && len(p.metrics) == 1 {
		p.value, err = p.parse(env, fmt.Sprintf("%s[%q]", varValue, p.metrics[0]))
	}
	return p, err
}

// parse reads one expression, notes the metrics that it names, and makes floating-point numbers of its whole ones: readings
// are such, and CEL does not mix them in arithmetic.
func (p *parsedRule) parse(env *cel.Env, src string) (*cel.Ast, error) {
	if len(src) > exprBytesMax {
		return nil, fmt.Errorf("the expression has %d bytes, at most %d are allowed", len(src), exprBytesMax)
	}
	parsed, issues := env.Parse(src)
	if issues.Err() != nil {
		return nil, fmt.Errorf("%s", firstLines(issues.Err()))
	}
	fac := ast.NewExprFactory()
	ast.PostOrderVisit(parsed.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.IdentKind:
			p.name(e.AsIdent())
		case ast.CallKind:
			if c := e.AsCall(); c.FunctionName() == "_[_]" && len(c.Args()) == 2 && c.Args()[1].Kind() == ast.LiteralKind {
				if t := c.Args()[0]; t.Kind() == ast.IdentKind && slices.Contains(tables, t.AsIdent()) {
					if name, ok := c.Args()[1].AsLiteral().(types.String); ok {
						p.note(string(name))
					}
				}
			}
		case ast.LiteralKind:
			if n, ok := e.AsLiteral().(types.Int); ok {
				e.SetKindCase(fac.NewLiteral(e.ID(), types.Double(n)))
			}
		}
	}))
	return parsed, nil
}

func (p *parsedRule) name(ident string) {
	if !slices.Contains(tables, ident) && ident != varNow && ident != varDevice {
		p.note(ident)
	}
}

func (p *parsedRule) note(metric string) {
	if !slices.Contains(p.metrics, metric) {
		p.metrics = append(p.metrics, metric)
	}
}

// compile makes programs of a rule's expressions, once all metrics are known.
func (s *Set) compile(p *parsedRule) (*rule, error) {
	r := &rule{Rule: *p.rule}
	env, err := base(p.idents()...)
	if err != nil {
		return nil, err
	}
	for _, m := range p.metrics {
		if err := dunlin.ValidateMetric(m); err != nil {
			return nil, err
		}
		r.metrics = append(r.metrics, s.metric(m))
	}
	for _, e := range []struct {
		what string
		from *cel.Ast
		to   **program
		bool bool
	}{{"when", p.when, &r.when, true}, {"clear", p.clear, &r.clear, true}, {"value", p.value, &r.value, false}} {
		if e.from == nil {
			continue
		}
		checked, issues := env.Check(e.from)
		if issues.Err() != nil {
			return nil, fmt.Errorf("%s: %s", e.what, firstLines(issues.Err()))
		}
		if t := checked.OutputType(); e.bool && !t.IsExactType(cel.BoolType) && !t.IsExactType(cel.DynType) {
			return nil, fmt.Errorf("%s is of type %s, not true or false", e.what, t)
		}
		run, err := env.Program(checked, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(costMax))
		if err != nil {
			return nil, fmt.Errorf("%s: %v", e.what, err)
		}
		*e.to = &program{run}
	}
	r.text, err = s.pieces(p.rule.Text)
	return r, err
}

// idents are the metrics that are named as identifiers may be.
func (p *parsedRule) idents() (of []string) {
	for _, m := range p.metrics {
		if strings.IndexFunc(m, func(c rune) bool {
			return c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9')
		}) < 0 {
			of = append(of, m)
		}
	}
	return of
}

// pieces cuts a text at its {metric}s.
func (s *Set) pieces(text string) (all []piece, err error) {
	for text != "" {
		words, rest, found := strings.Cut(text, "{")
		if words != "" {
			all = append(all, piece{words: words, metric: -1})
		}
		if !found {
			return all, nil
		}
		name, after, closed := strings.Cut(rest, "}")
		i := s.metric(name)
		if !closed || i < 0 {
			return nil, fmt.Errorf("text: {%s} is no metric that the rules name", name)
		}
		all, text = append(all, piece{metric: i}), after
	}
	return all, nil
}

// firstLines is CEL's message without its drawing of the expression.
func firstLines(err error) string {
	lines := strings.Split(err.Error(), "\n")
	return strings.TrimPrefix(strings.TrimSpace(lines[0]), "ERROR: <input>:")
}
