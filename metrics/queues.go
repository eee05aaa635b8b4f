package metrics

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/redisha/redisha/broker"
)

// QueuesConfig configures [Queues]. The zero QueuesConfig is ready to use.
type QueuesConfig struct {
	// Names are the queues to look at. Defaults to all that there are, which are
	// looked for among all keys of the server each time.
	Names []string

	// Every is the pause between two looks. Defaults to 15s; at least 1s.
	Every time.Duration
}

// Queues collects what waits in the queues of a broker, for all processes
// together, which no process knows of itself: one or two processes of a
// deployment should do it. [Queues.Run] looks, a scrape does not: it shows what
// was found last, and nothing once that is older than three times
// QueuesConfig.Every. The label queue takes the names of the queues.
//
//	queues, err := metrics.NewQueues(clients.Broker, metrics.QueuesConfig{})
//	prometheus.MustRegister(queues)
//	go queues.Run(ctx)
type Queues struct {
	inspector *broker.Inspector
	cfg       QueuesConfig

	mu     sync.Mutex
	found  []broker.QueueStatus
	at     time.Time // when they were found
	looks  uint64
	failed uint64
	last   error
}

// NewQueues returns a collector of the queues of c. It does no I/O.
func NewQueues(c *broker.Client, cfg QueuesConfig) (*Queues, error) {
	cfg.Every = cmp.Or(cfg.Every, 15*time.Second)
	cfg.Names = slices.Clone(cfg.Names)
	if cfg.Every < time.Second {
		return nil, fmt.Errorf("metrics: QueuesConfig.Every is %s, want at least 1s, or 0 for 15s", cfg.Every)
	}
	inspector, err := broker.NewInspector(c, nil)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return &Queues{inspector: inspector, cfg: cfg}, nil
}

// Run looks at the queues until ctx is done, and then returns nil; or
// [broker.ErrClosed] once the client is closed. Other errors are counted, and
// [Queues.Err] tells the last one.
func (q *Queues) Run(ctx context.Context) error {
	tick := time.NewTicker(q.cfg.Every)
	defer tick.Stop()
	for {
		if err := q.look(ctx); errors.Is(err, broker.ErrClosed) {
			return fmt.Errorf("metrics: queues: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Err returns what went wrong at the last look, or nil.
func (q *Queues) Err() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.last
}

// look reads the queues, and keeps what is there until the next time.
func (q *Queues) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*q.cfg.Every)
	defer cancel()
	found, err := q.read(ctx)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.looks++
	if q.last = err; err != nil {
		q.failed++
		return err
	}
	q.found, q.at = found, time.Now()
	return nil
}

func (q *Queues) read(ctx context.Context) ([]broker.QueueStatus, error) {
	names := q.cfg.Names
	if names == nil {
		var err error
		if names, err = q.inspector.Queues(ctx); err != nil {
			return nil, err
		}
	}
	var found []broker.QueueStatus
	for _, name := range names {
		one, err := q.inspector.Queue(ctx, name)
		if errors.Is(err, broker.ErrNotFound) {
			one, err = broker.QueueStatus{Name: name}, nil // a series at 0 until it is used
		}
		if err != nil {
			return nil, err
		}
		found = append(found, one)
	}
	return found, nil
}

// Describe implements [prometheus.Collector].
func (q *Queues) Describe(ch chan<- *prometheus.Desc) {
	waiting.describe(ch)
	looking.describe(ch)
}

// Collect implements [prometheus.Collector]. It does no I/O.
func (q *Queues) Collect(ch chan<- prometheus.Metric) {
	q.mu.Lock()
	defer q.mu.Unlock()
	looking.collect(ch, q)
	if time.Since(q.at) > 3*q.cfg.Every {
		return
	}
	for i := range q.found {
		waiting.collect(ch, &q.found[i], q.found[i].Name)
	}
}

// looking is how the looks at the queues go.
var looking = newTable(nil,
	counter("redisha_queues_looks_total",
		"Times that the queues were looked at.",
		func(q *Queues) uint64 { return q.looks }),
	counter("redisha_queues_failed_looks_total",
		"Looks at the queues that failed. The series of queues vanish after three times the interval.",
		func(q *Queues) uint64 { return q.failed }),
)

// waiting is what a queue holds.
var waiting = newTable(by("queue"),
	gauges("redisha_queue_tasks",
		"Tasks in the queue by state: ready, in_flight (with a worker), delayed, parked (behind another task of their concurrency key), dead (dead letters).",
		by("state"), func(s *broker.QueueStatus) []sample {
			return []sample{level(s.Ready, "ready"), level(s.InFlight, "in_flight"), level(s.Delayed, "delayed"), level(s.Parked, "parked"), level(s.Dead, "dead")}
		}),
	gauges("redisha_queue_waiting_seconds",
		"Seconds for which the oldest ready task has been ready.",
		nil, func(s *broker.QueueStatus) []sample { return []sample{{value: s.Waiting.Seconds()}} }),
	gauges("redisha_queue_overdue_seconds",
		"Seconds since the first delayed task was due; more than one means that no worker moves them.",
		nil, func(s *broker.QueueStatus) []sample { return []sample{{value: s.Overdue.Seconds()}} }),
	gauges("redisha_queue_paused",
		"1 if the queue is paused, else 0.",
		nil, func(s *broker.QueueStatus) []sample { return []sample{truth(s.Paused)} }),
	gauges("redisha_queue_consumers",
		"Consumers, one for each worker and partition: alive, or dead and not yet cleared away.",
		by("state"), func(s *broker.QueueStatus) []sample {
			alive := int64(0)
			for _, c := range s.Consumers {
				if c.Lease > 0 {
					alive++
				}
			}
			return []sample{level(alive, "alive"), level(int64(len(s.Consumers))-alive, "dead")}
		}),
	counters("redisha_queue_events_total",
		"What became of the tasks of the queue, in all processes, since it was made. Tasks published or revived end as acked, dead, cancelled, expired or purged.",
		by("event"), func(s *broker.QueueStatus) []sample {
			var all []sample
			for _, event := range []string{"published", "acked", "retried", "dead", "cancelled", "expired", "purged", "released", "reaped", "due", "revived", "deleted"} {
				all = append(all, count(uint64(max(s.Counts[event], 0)), event))
			}
			return all
		}),
)
