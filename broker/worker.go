package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redisha/redisha/broker/result"
)

// A WorkerConfig configures a [Worker]. The zero WorkerConfig is ready to use.
type WorkerConfig struct {
	// Queues are those that the worker serves. Defaults to those of the tasks
	// that have a handler.
	Queues []string

	// Concurrency is how many handlers run at once. Defaults to 10; at most
	// 10,000.
	Concurrency int

	// QueueConcurrency is how many handlers of a queue run at once in this worker,
	// by name. A queue that is not named may have all of Concurrency. Queues that
	// have tasks waiting share it evenly.
	QueueConcurrency map[string]int

	// Results is where results are stored, of a [ResultTask] and of tasks with
	// a retention. Nil: nowhere, with a warning.
	Results *result.Client

	// Lease is how long the tasks of this worker stay with it after it was last
	// heard of: the time after which the tasks of a dead worker run again. It is
	// renewed every fifth of that. Without renewal for four fifths of it, the
	// worker ends the contexts of its handlers. Defaults to 15s; at least 500ms.
	Lease time.Duration

	// Middleware is put around every handler, the first one outermost. See
	// [Middleware].
	Middleware []Middleware

	// DrainTimeout is how long handlers may go on after Run's context has ended,
	// before their own contexts end. Defaults to 20s; negative means that they
	// end at once.
	DrainTimeout time.Duration

	// Logger is where the worker logs. Defaults to the client's.
	Logger *slog.Logger
}

// settleTimeout is how long a stopping worker tries to store its last verdicts.
const settleTimeout = 5 * time.Second

func (c WorkerConfig) withDefaults(client *Client) WorkerConfig {
	c.Queues = slices.Clone(c.Queues)
	c.Middleware = slices.Clone(c.Middleware)
	c.QueueConcurrency = maps.Clone(c.QueueConcurrency)
	c.Concurrency = cmp.Or(c.Concurrency, 10)
	c.Lease = cmp.Or(c.Lease, 15*time.Second)
	c.DrainTimeout = cmp.Or(c.DrainTimeout, 20*time.Second)
	c.Logger = cmp.Or(c.Logger, client.log)
	return c
}

func (c WorkerConfig) validate() error {
	for _, q := range c.Queues {
		if err := validateQueue(q); err != nil {
			return fmt.Errorf("WorkerConfig.Queues: %w", err)
		}
	}
	for i, m := range c.Middleware {
		if m == nil {
			return fmt.Errorf("WorkerConfig.Middleware: the one at %d is nil", i)
		}
	}
	for q, n := range c.QueueConcurrency {
		if n < 1 {
			return fmt.Errorf("WorkerConfig.QueueConcurrency of %q is %d, want at least 1", q, n)
		}
	}
	switch {
	case c.Concurrency < 1 || c.Concurrency > 10_000:
		return fmt.Errorf("WorkerConfig.Concurrency is %d, want 1 to 10000, or 0 for 10", c.Concurrency)
	case c.Lease < 500*time.Millisecond:
		return fmt.Errorf("WorkerConfig.Lease is %s, want at least 500ms, or 0 for 15s", c.Lease)
	}
	return nil
}

// A Worker takes tasks from queues and runs their handlers. Handlers are added
// by [Task.Handle]; then [Worker.Run] does the work.
type Worker struct {
	c   *Client
	cfg WorkerConfig
	log *slog.Logger

	mu       sync.Mutex
	handlers map[string]*handler
	errs     []error // of registrations, reported by Run
	running  bool
	warned   map[string]bool // what was logged once
}

// A handler runs tasks of one name. run returns the encoded result, nil for none.
type handler struct {
	def *definition
	run func(ctx context.Context, payload []byte, results *result.Client) ([]byte, error)

	chain Handler // run, within the worker's middleware
}

// NewWorker returns a worker for the queues of c. It does no I/O.
func NewWorker(c *Client, cfg WorkerConfig) (*Worker, error) {
	if c == nil {
		return nil, errors.New("broker: new worker: nil client: pass one made by New")
	}
	cfg = cfg.withDefaults(c)
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("broker: new worker: %w", err)
	}
	return &Worker{c: c, cfg: cfg, log: cfg.Logger, handlers: make(map[string]*handler), warned: make(map[string]bool)}, nil
}

// register adds a handler, or keeps for Run what is wrong with it.
func (w *Worker) register(d *definition, run func(context.Context, []byte, *result.Client) ([]byte, error)) {
	if w == nil || w.c == nil {
		return // Run says so
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var err error
	switch {
	case d.usable() != nil:
		err = d.usable()
	case run == nil:
		err = errors.New("the handler is nil")
	case w.handlers[d.name] != nil:
		err = errors.New("there is a handler for it already")
	case w.running:
		err = errors.New("the worker runs: add handlers before Run")
	}
	if err != nil {
		w.errs = append(w.errs, fmt.Errorf("handle %q: %w", d.label(), err))
		return
	}
	w.handlers[d.name] = &handler{def: d, run: run}
}

// start checks what Run begins with.
func (w *Worker) start(ctx context.Context) error {
	if ctx == nil {
		return errNilContext
	}
	if err := w.c.usable(ctx); err != nil {
		return err
	}
	if err := w.c.conn.Err(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.running:
		return errors.New("it runs already: make a second worker")
	case len(w.errs) > 0:
		return errors.Join(w.errs...)
	case len(w.handlers) == 0:
		return errors.New("no task has a handler: call Handle before Run")
	}
	for _, h := range w.handlers {
		var err error
		if h.chain, err = w.chain(h); err != nil {
			return err
		}
	}
	if !w.c.begin() {
		return ErrClosed
	}
	w.running = true
	return nil
}

func (w *Worker) stop() {
	w.mu.Lock()
	w.running = false
	w.mu.Unlock()
	w.c.started.Done()
}

// queueNames are the queues to serve, each once.
func (w *Worker) queueNames() []string {
	names := slices.Clone(w.cfg.Queues)
	if len(names) == 0 {
		for _, h := range w.handlers {
			names = append(names, h.def.cfg.Queue)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// limit is how many tasks of a queue may run at once.
func (w *Worker) limit(queue string) int {
	if n, ok := w.cfg.QueueConcurrency[queue]; ok {
		return min(n, w.cfg.Concurrency)
	}
	return w.cfg.Concurrency
}

// warnStrange logs a task that no handler knows, once for each name.
func (w *Worker) warnStrange(e *envelope, queue string) {
	if w.first("task " + e.task) {
		w.log.Warn("task left for another worker: this one has no handler for it", "queue", queue, "task", e.task, "id", e.id)
	}
}

// warnResultless logs that results of a task are wanted and cannot be kept, once
// for each name.
func (w *Worker) warnResultless(e *envelope) {
	if w.first("result " + e.task) {
		w.log.Warn("result not kept: WorkerConfig.Results is nil", "task", e.task, "id", e.id)
	}
}

// first reports whether it is called for the first time with what; after 1000
// different ones never.
func (w *Worker) first(what string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.warned[what] || len(w.warned) >= 1000 {
		return false
	}
	w.warned[what] = true
	return true
}

// instanceName tells a run of a worker from all others, and people where it runs.
func instanceName() string {
	host, _ := os.Hostname()
	host = strings.Map(func(r rune) rune {
		if r <= ' ' || r >= 0x7f || strings.ContainsRune(":{}", r) {
			return '-'
		}
		return r
	}, host)
	return fmt.Sprintf("%.40s:%d:%s", host, os.Getpid(), randomName())
}
