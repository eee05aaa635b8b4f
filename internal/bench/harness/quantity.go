package harness

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// A Quantity is something measured, in a unit. A topic may define its own.
type Quantity struct {
	Name         string // column and row headings: "time/op"
	Unit         Unit
	MoreIsBetter bool // else less is
}

// What [B.Measure] records.
var (
	TimePerOp    = Quantity{Name: "time/op"} // elapsed time through operations, of all callers together
	OpsPerSecond = Quantity{Name: "ops/s", Unit: Rate, MoreIsBetter: true}
	P50          = Quantity{Name: "p50"} // of the operations' latencies, as P99
	P99          = Quantity{Name: "p99"}
	ClientCPU    = Quantity{Name: "client CPU/op"} // of this process, user and system
	ServerCPU    = Quantity{Name: "server CPU/op"} // of Load.Servers, user and system
	Allocs       = Quantity{Name: "allocs/op", Unit: Count}
	AllocBytes   = Quantity{Name: "B/op", Unit: Bytes}
)

// A Unit says how values of a quantity are meant and shown.
type Unit int

// The units. The zero value is Duration.
const (
	Duration Unit = iota // nanoseconds
	Rate                 // per second
	Count
	Bytes
)

// missing stands where nothing was measured.
const missing = "–"

func (u Unit) format(v float64) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return missing
	}
	switch u {
	case Duration:
		return formatDuration(v)
	case Rate:
		return digits(v) + "/s"
	case Bytes:
		return digits(v) + " B"
	}
	return digits(v)
}

func formatDuration(ns float64) string {
	unit, name := time.Second, "s"
	switch abs := math.Abs(ns); {
	case abs == 0:
		return "0"
	case abs < 999.5:
		unit, name = time.Nanosecond, "ns"
	case abs < 999.5e3:
		unit, name = time.Microsecond, "µs"
	case abs < 999.5e6:
		unit, name = time.Millisecond, "ms"
	}
	return digits(ns/float64(unit)) + " " + name
}

// digits shows three significant digits, and never fewer than those before the
// decimal point, which come in groups of three.
func digits(v float64) string {
	if v < 0 {
		return "-" + digits(-v)
	}
	if v >= 999.5 {
		return group(strconv.FormatFloat(v, 'f', 0, 64))
	}
	if v != 0 && v < 0.001 {
		return fmt.Sprintf("%.2g", v)
	}
	decimals := 2
	switch {
	case v >= 99.95:
		decimals = 0
	case v >= 9.995:
		decimals = 1
	case v < 0.9995:
		decimals = 3
	}
	s := strconv.FormatFloat(v, 'f', decimals, 64)
	if whole, fraction, _ := strings.Cut(s, "."); strings.Trim(fraction, "0") == "" {
		return whole
	}
	return s
}

func group(s string) string {
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
