package metrics

import (
	"cmp"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/redisha/redishatest"
)

func TestMetricsPassTheLintOfPromtool(t *testing.T) { synctest.Test(t, testLint) }

func testLint(t *testing.T) {
	reg := registryOf(t, openAll(t, redishatest.New(t), newGroup(t)))
	problems, err := testutil.GatherAndLint(reg)
	require.NoError(t, err)
	require.Empty(t, problems)

	problems, err = promlint.New(strings.NewReader(scrapeText(t, reg))).Lint()
	require.NoError(t, err)
	require.Empty(t, problems)
}

// A family is what a scrape says of one metric.
type family struct {
	name, kind string
	labels     []string            // in the order of their names
	values     map[string][]string // of each label
}

var (
	typeLine = regexp.MustCompile(`^# TYPE (\S+) (\S+)$`)
	label    = regexp.MustCompile(`(\w+)="([^"]*)"`)
)

// families reads the text of a scrape.
func families(t *testing.T, text string) []*family {
	t.Helper()
	var all []*family
	for line := range strings.Lines(text) {
		if m := typeLine.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			all = append(all, &family{name: m[1], kind: m[2], values: map[string][]string{}})
		}
		if strings.HasPrefix(line, "#") {
			continue
		}
		f := all[len(all)-1]
		for _, m := range label.FindAllStringSubmatch(line, -1) {
			if m[1] != "le" && !slices.Contains(f.values[m[1]], m[2]) {
				f.values[m[1]] = append(f.values[m[1]], m[2])
			}
		}
		f.labels = slices.Sorted(maps.Keys(f.values))
	}
	return all
}

func TestNamesTypesAndLabelsStay(t *testing.T) { synctest.Test(t, testNames) }

func testNames(t *testing.T) {
	var lines []string
	text := scrapeText(t, registryOf(t, openAll(t, redishatest.New(t), newGroup(t)))) + scrapeText(t, oneQueue(t))
	for _, f := range families(t, text) {
		line := f.name + " " + f.kind
		for _, name := range f.labels {
			line += " " + name + "=" + strings.Join(f.values[name], ",")
		}
		lines = append(lines, line)
	}
	requireGolden(t, "metrics.txt", lines)
}

// row is a line of the table in the package comment: name, type, labels.
var row = regexp.MustCompile(`(?m)^//\t(redisha_\w+) +(\w+) *([\w, ]*)$`)

func TestThePackageCommentListsEveryMetric(t *testing.T) { synctest.Test(t, testPackageComment) }

func testPackageComment(t *testing.T) {
	type entry struct{ name, kind, labels string }
	var want, got []entry
	text := scrapeText(t, registryOf(t, openAll(t, redishatest.New(t), newGroup(t)))) + scrapeText(t, oneQueue(t))
	for _, f := range families(t, text) {
		want = append(want, entry{f.name, f.kind, strings.Join(f.labels, ", ")})
	}
	comment, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	for _, m := range row.FindAllStringSubmatch(string(comment), -1) {
		got = append(got, entry{m[1], m[2], m[3]})
	}
	byName := func(a, b entry) int { return cmp.Compare(a.name, b.name) }
	slices.SortFunc(want, byName)
	slices.SortFunc(got, byName)
	require.Equal(t, want, got)
}
