package harness

import (
	"fmt"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// A report is what a run prints: Markdown that BENCHMARKS.md takes as it is.
type report struct {
	topic    Topic
	command  string
	machine  string
	versions []string
	began    time.Time
	quick    bool
	rounds   []string
	settings []string
	rows     []row
	failure  error // why the table is not complete
}

// counted takes down how long a comparison ran, once for all that are alike.
func (r *report) counted(c Comparison) {
	rounds := fmt.Sprintf("%d rounds with turns of %s", c.Rounds, c.Slice)
	if c.Whole {
		rounds = fmt.Sprintf("%d rounds", c.Rounds)
	}
	if !slices.Contains(r.rounds, rounds) {
		r.rounds = append(r.rounds, rounds)
	}
}

func (r *report) missed() int {
	n := 0
	for _, row := range r.rows {
		if row.missed() {
			n++
		}
	}
	return n
}

func (r *report) targets() int {
	n := 0
	for _, row := range r.rows {
		if row.target != nil {
			n++
		}
	}
	return n
}

func (r *report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "## %s: %s\n\n", r.topic.Name, r.topic.About)
	parts := []string{
		"`" + r.command + "`, " + r.began.UTC().Format("2006-01-02 15:04 MST"),
		r.machine,
		strings.Join(r.versions, ", "),
	}
	fmt.Fprintf(&b, "%s.\n\n", strings.Join(append(parts, r.rounds...), "; "))
	for _, s := range r.settings {
		fmt.Fprintf(&b, "- %s\n", s)
	}
	if len(r.settings) > 0 {
		b.WriteString("\n")
	}
	if len(r.rows) > 0 {
		lines := [][]string{headings(r.topic.Beside)}
		for _, row := range r.rows {
			lines = append(lines, row.cells(r.topic.Beside))
		}
		b.WriteString(markdown(lines) + "\n")
	}
	b.WriteString(r.verdict() + "\n")
	return b.String()
}

func (r *report) verdict() string {
	var parts []string
	switch missed, targets := r.missed(), r.targets(); {
	case targets == 0:
		parts = append(parts, "No targets.")
	case missed == 0:
		parts = append(parts, fmt.Sprintf("Targets: %d of %d met.", targets, targets))
	default:
		parts = append(parts, fmt.Sprintf("Targets: %d of %d met, %d **missed**.", targets-missed, targets, missed))
	}
	if r.quick {
		parts = append(parts, "A quick run: it shows that the benchmark works; its figures prove nothing, and a missed target does not fail it.")
	}
	if r.failure != nil {
		parts = append(parts, "**Not complete**: "+r.failure.Error())
	}
	return strings.Join(parts, " ")
}

// machine describes what the run ran on.
func machine() string {
	s := fmt.Sprintf("%d cores, %s, %s/%s", runtime.NumCPU(), cpuModel(readFile("/proc/cpuinfo")), runtime.GOOS, runtime.GOARCH)
	if load, _, ok := strings.Cut(readFile("/proc/loadavg"), " "); ok {
		s += ", load average " + load + " beforehand"
	}
	return s
}

var modelName = regexp.MustCompile(`(?m)^model name\s*:\s*(.+)$`)

func cpuModel(cpuinfo string) string {
	if found := modelName.FindStringSubmatch(cpuinfo); found != nil {
		return strings.TrimSpace(found[1])
	}
	return "CPU model not known"
}

// readFile returns what is in a file that only Linux has, else nothing.
func readFile(path string) string {
	b, _ := os.ReadFile(path)
	return string(b)
}

// moduleVersion returns the version of a module that is linked in.
func moduleVersion(path string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, m := range info.Deps {
		if m.Path == path {
			return m.Version
		}
	}
	return "unknown"
}
