package harness

import (
	"fmt"
	"slices"
	"strings"
)

// A row is a line of the table.
type row struct {
	work, contender string
	quantity        Quantity
	values          []float64 // by round
	ratios          []float64 // to against, of the rounds that both measured
	against         []string  // nobody: no ratio
	isBaseline      bool
	target          *Target
	beside          map[Quantity]float64 // medians; nil for a further row of a contender
}

func (r row) missed() bool {
	return r.target != nil && !r.target.Limit.met(r.target.Limit.figure(r.values, r.ratios))
}

// rows returns the rows of all contenders in their order, each followed by those
// of its further targets.
func (c Comparison) rows(taken readings) []row {
	var rows []row
	for _, contender := range c.Contenders {
		targets := slices.DeleteFunc(slices.Clone(c.Targets), func(t Target) bool { return t.Contender != contender.Name })
		var own *Target
		if i := slices.IndexFunc(targets, func(t Target) bool { return t.Quantity == c.Quantity }); i >= 0 {
			own = &targets[i]
		}
		first := c.row(taken, contender.Name, c.Quantity, own)
		first.beside = make(map[Quantity]float64)
		for key, values := range taken {
			if key.contender == contender.Name {
				first.beside[key.quantity] = median(measured(values))
			}
		}
		rows = append(rows, first)
		for i := range targets {
			if t := &targets[i]; t != own {
				rows = append(rows, c.row(taken, contender.Name, t.Quantity, t))
			}
		}
	}
	return rows
}

func (c Comparison) row(taken readings, contender string, q Quantity, t *Target) row {
	r := row{
		work:      c.Work,
		contender: contender,
		quantity:  q,
		values:    taken[reading{contender, q}],
		target:    t,
	}
	switch {
	case t != nil && len(t.Against) > 0:
		r.against = t.Against
	case contender == c.Baseline:
		r.isBaseline = true
	case c.Baseline != "":
		r.against = []string{c.Baseline}
	}
	r.ratios = ratios(r.values, taken.best(r.against, q))
	return r
}

// cells returns the row's cells in the order of headings.
func (r row) cells(beside []Quantity) []string {
	format := r.quantity.Unit.format
	cells := []string{r.work, r.contender, r.quantity.Name, missing, missing, r.ratio(), missing, missing}
	if values := measured(r.values); len(values) > 0 {
		cells[3] = format(median(values))
		cells[4] = format(slices.Min(values)) + " – " + format(slices.Max(values))
	}
	if r.target != nil {
		cells[6], cells[7] = r.target.Limit.format(r.quantity.Unit), "met"
		if r.missed() {
			cells[7] = "**missed**"
		}
	}
	for _, q := range beside {
		if v, ok := r.beside[q]; ok {
			cells = append(cells, q.Unit.format(v))
		} else {
			cells = append(cells, missing)
		}
	}
	return cells
}

func headings(beside []Quantity) []string {
	h := []string{"work", "contender", "measured", "median", "min – max", "ratio (95 %)", "target", "verdict"}
	for _, q := range beside {
		h = append(h, q.Name)
	}
	return h
}

// ratio shows the median of the rounds' ratios, between which bounds it lies,
// and to whom.
func (r row) ratio() string {
	switch {
	case r.isBaseline:
		return "baseline"
	case len(r.ratios) == 0:
		return missing
	}
	low, high := interval(r.ratios)
	to := r.against[0]
	if len(r.against) > 1 {
		to = "best of " + strings.Join(r.against, ", ")
	}
	return fmt.Sprintf("%s (%s – %s) × %s", formatRatio(median(r.ratios)), formatRatio(low), formatRatio(high), to)
}

// formatRatio shows one decimal more than targets have.
func formatRatio(r float64) string {
	if r >= 9.9995 || r < 0.1 {
		return digits(r)
	}
	return fmt.Sprintf("%.3f", r)
}

// markdown lays out a table, with columns that also read well unrendered.
func markdown(lines [][]string) string {
	widths := make([]int, len(lines[0]))
	for _, cells := range lines {
		for i, cell := range cells {
			widths[i] = max(widths[i], len([]rune(escape(cell))))
		}
	}
	var b strings.Builder
	for i, cells := range lines {
		for j, cell := range cells {
			cell = escape(cell)
			fmt.Fprintf(&b, "| %s%s ", cell, strings.Repeat(" ", widths[j]-len([]rune(cell))))
		}
		b.WriteString("|\n")
		if i > 0 {
			continue
		}
		for j := range cells {
			b.WriteString("|" + strings.Repeat("-", widths[j]+2))
		}
		b.WriteString("|\n")
	}
	return b.String()
}

func escape(cell string) string { return strings.ReplaceAll(cell, "|", `\|`) }
