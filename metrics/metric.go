package metrics

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/redisha/redisha/internal/stats"
)

// A metric is one metric family and how it is read from statistics of type S.
type metric[S any] struct {
	name, help string
	kind       prometheus.ValueType // not used for a histogram
	labels     []string             // of its samples, after those of its table
	read       func(*S) []sample
	desc       *prometheus.Desc
}

// A sample is one value of a metric family. What read leaves out is not shown.
type sample struct {
	labels []string
	value  float64
	times  *stats.HistogramSnapshot // set for a histogram alone
}

func counter[S any](name, help string, read func(*S) uint64) metric[S] {
	return counters(name, help, nil, func(s *S) []sample { return []sample{count(read(s))} })
}

func counters[S any](name, help string, labels []string, read func(*S) []sample) metric[S] {
	return metric[S]{name: name, help: help, kind: prometheus.CounterValue, labels: labels, read: read}
}

func gauge[S any](name, help string, read func(*S) int64) metric[S] {
	return gauges(name, help, nil, func(s *S) []sample { return []sample{level(read(s))} })
}

func gauges[S any](name, help string, labels []string, read func(*S) []sample) metric[S] {
	return metric[S]{name: name, help: help, kind: prometheus.GaugeValue, labels: labels, read: read}
}

func histogram[S any](name, help string, read func(*S) stats.HistogramSnapshot) metric[S] {
	return histograms(name, help, nil, func(s *S) []sample { return []sample{times(read(s))} })
}

func histograms[S any](name, help string, labels []string, read func(*S) []sample) metric[S] {
	return metric[S]{name: name, help: help, labels: labels, read: read}
}

// by names the labels of a metric's samples.
func by(labels ...string) []string { return labels }

func count(n uint64, labels ...string) sample { return sample{labels: labels, value: float64(n)} }

func level(n int64, labels ...string) sample { return sample{labels: labels, value: float64(n)} }

// truth is 1 or 0.
func truth(is bool, labels ...string) sample {
	if is {
		return level(1, labels...)
	}
	return level(0, labels...)
}

func times(h stats.HistogramSnapshot, labels ...string) sample {
	return sample{labels: labels, times: &h}
}

// A table lists the metrics that are read from statistics of type S.
type table[S any] []metric[S]

// newTable makes the descriptions of metrics, each of which has labels before
// its own ones. A mistake in a description shows when it is registered.
func newTable[S any](labels []string, metrics ...metric[S]) table[S] {
	for i := range metrics {
		m := &metrics[i]
		m.desc = prometheus.NewDesc(m.name, m.help, slices.Concat(labels, m.labels), nil)
	}
	return metrics
}

func (t table[S]) describe(ch chan<- *prometheus.Desc) {
	for i := range t {
		ch <- t[i].desc
	}
}

// collect sends what s holds, under the given values of the table's labels.
func (t table[S]) collect(ch chan<- prometheus.Metric, s *S, labels ...string) {
	for i := range t {
		for _, v := range t[i].read(s) {
			ch <- t[i].render(v, slices.Concat(labels, v.labels))
		}
	}
}

// render returns v for Prometheus. A label that is not UTF-8 fails the scrape
// with an error, not the program.
func (m *metric[S]) render(v sample, labels []string) prometheus.Metric {
	var out prometheus.Metric
	var err error
	if v.times != nil {
		out, err = prometheus.NewConstHistogram(m.desc, v.times.Count, v.times.Sum.Seconds(), v.times.Cumulative(), labels...)
	} else {
		out, err = prometheus.NewConstMetric(m.desc, m.kind, v.value, labels...)
	}
	if err != nil {
		return prometheus.NewInvalidMetric(m.desc, err)
	}
	return out
}
