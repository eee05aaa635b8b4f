package metrics

import (
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/redisha"
	"github.com/redisha/redisha/redisha/redishatest"
)

// leftOut are the fields of statistics that no metric shows, and why.
var leftOut = map[string]string{
	"Conn.Role":                        "the label role is made of the field of redisha.Clients, which also a foreign client has",
	"Conn.Primary.Addr":                "labels hold no addresses",
	"Conn.Primary.LastOutage":          "a scrape would miss all but the last one; redisha_primary_outage_seconds_total has their sum",
	"Conn.Primary.Resolver.Switches":   "redisha_primary_switches_total counts them where they are acted upon",
	"Conn.Primary.Resolver.LastSwitch": "it is when redisha_primary_switches_total grows",
	"Nodes[0].Addr":                    "labels hold no addresses",
}

// A snapshot renders one role's statistics.
type snapshot func(ch chan<- prometheus.Metric)

func (snapshot) Describe(chan<- *prometheus.Desc) {} // unchecked

func (s snapshot) Collect(ch chan<- prometheus.Metric) { s(ch) }

func render(t *testing.T, s snapshot) map[string]float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	require.NoError(t, reg.Register(s))
	return scrape(t, reg)
}

// eachLeaf changes each field below v, one after the other, and calls visit
// with its path while it is changed. Of slices and arrays it takes the first
// element.
func eachLeaf(t *testing.T, path string, v reflect.Value, visit func(path string)) {
	t.Helper()
	when, isTime := v.Interface().(time.Time)
	switch {
	case isTime:
		v.Set(reflect.ValueOf(when.Add(time.Hour)))
		visit(path)
		v.Set(reflect.ValueOf(when))
		return
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			eachLeaf(t, strings.TrimPrefix(path+"."+v.Type().Field(i).Name, "."), v.Field(i), visit)
		}
		return
	case v.Kind() == reflect.Slice, v.Kind() == reflect.Array:
		require.NotZero(t, v.Len(), path)
		eachLeaf(t, path+"[0]", v.Index(0), visit)
		return
	}
	old := reflect.ValueOf(v.Interface())
	switch {
	case v.CanUint():
		v.SetUint(v.Uint() + 1)
	case v.CanInt():
		v.SetInt(v.Int() + 1)
	case v.Kind() == reflect.Bool:
		v.SetBool(!v.Bool())
	case v.Kind() == reflect.String:
		v.SetString("open")
	default:
		require.Fail(t, "unknown kind of field", "%s: %s", path, v.Kind())
	}
	visit(path)
	v.Set(old)
}

// leLabel is the bound of a bucket, the last or only label.
var leLabel = regexp.MustCompile(`\{le="[^"]*"\}|,le="[^"]*"`)

// changes returns the series that differ, buckets of a histogram as one.
func changes(before, after map[string]float64) []string {
	differ := map[string]bool{}
	for name, value := range after {
		if old, ok := before[name]; !ok || old != value {
			differ[leLabel.ReplaceAllString(name, "")] = true
		}
	}
	for name := range before {
		if _, ok := after[name]; !ok {
			differ[leLabel.ReplaceAllString(name, "")] = true
		}
	}
	return slices.Sorted(maps.Keys(differ))
}

func TestEveryFieldOfStatisticsIsShownByItsMetric(t *testing.T) {
	clients := open(t, redishatest.New(t))
	cache, broker, results, locks := clients.Cache.Stats(), clients.Broker.Stats(), clients.Results.Stats(), clients.Locks.Stats()
	for _, c := range []*conn.Stats{&cache.Conn, &broker.Conn, &results.Conn, &locks.Nodes[0].Conn} {
		c.Commands.Latency = c.Commands.Latency[:1] // all are alike, and long
	}
	locks.Nodes = append(locks.Nodes, locks.Nodes[0], locks.Nodes[0])                                            // as a quorum has
	cache.Conn.Topology, cache.Conn.Primary.Followed, cache.Conn.Replicas.Enabled = sentinelTopology, true, true // has most
	var lines []string
	for _, role := range []struct {
		role   redisha.Role
		stats  any
		render snapshot
	}{
		{redisha.Cache, &cache, func(ch chan<- prometheus.Metric) { collectCache(ch, redisha.Cache, cache) }},
		{redisha.Broker, &broker, func(ch chan<- prometheus.Metric) { collectBroker(ch, broker) }},
		{redisha.Results, &results, func(ch chan<- prometheus.Metric) { collectResults(ch, results) }},
		{redisha.Locks, &locks, func(ch chan<- prometheus.Metric) { collectLocks(ch, locks) }},
	} {
		zero := render(t, role.render)
		eachLeaf(t, "", reflect.ValueOf(role.stats).Elem(), func(path string) {
			if role.role != redisha.Cache && strings.Contains(path, "Conn.") && !strings.HasSuffix(path, "Conn.Dials") {
				return // all roles share the code for the rest
			}
			changed := changes(zero, render(t, role.render))
			_, hidden := leftOut[path]
			require.Equal(t, hidden, len(changed) == 0,
				"%s: %s changes %v: give it a metric, or a reason in leftOut", role.role, path, changed)
			switch len(changed) {
			case 0:
				return
			case len(changes(nil, zero)):
				changed = []string{"all"}
			}
			lines = append(lines, fmt.Sprintf("%s %s: %s", role.role, path, strings.Join(changed, " ")))
		})
	}
	requireGolden(t, "fields.txt", lines)
}
