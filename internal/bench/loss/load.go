package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/broker"
	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/redistest"
)

const (
	publishers  = 96
	clients     = 2
	rate        = 40_000 // of tasks a second, for servers that are killed
	mishapRate  = 10_000 // for mishaps, which take longer
	workerCount = 2
	concurrency = 32
	lease       = 8 * time.Second
	slowEvery   = 16
	slowFor     = 3 * time.Millisecond

	queue    = "loss"
	taskName = "loss"

	// Acks that a worker may owe: of a failover, what a source keeps for the time
	// when the server is back; of a crash, a batch on its way and one that forms.
	unsettled = 1024 + 512
	unflushed = 2 * 256

	// drainLimit is how long the workers may take for what is left, when nothing
	// more happens to anybody.
	drainLimit = 45 * time.Second
)

// Logs of clients are for who looks into a round.
func (b *bench) logger() *slog.Logger {
	if b.stories {
		return slog.New(slog.NewTextHandler(noteWriter{b}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	return slog.New(slog.DiscardHandler)
}

type noteWriter struct{ b *bench }

func (w noteWriter) Write(p []byte) (int, error) {
	w.b.Note("%s", strings.TrimSpace(string(p)))
	return len(p), nil
}

// A client is a broker's, on a connection of its own.
type client struct {
	*broker.Client
	conn *conn.Client
}

// connect opens a client as redisha.Open does for the broker.
func connect(url string, confirm broker.Confirm, log *slog.Logger) (*client, error) {
	ep, err := endpoint.Parse(url)
	if err != nil {
		return nil, err
	}
	cn, err := conn.New(conn.Config{Role: "broker", Application: "loss", Endpoint: ep, Logger: log})
	if err != nil {
		return nil, err
	}
	c, err := broker.New(cn, broker.Config{Confirm: confirm, Logger: log})
	if err != nil {
		return nil, errors.Join(err, cn.Close())
	}
	return &client{c, cn}, nil
}

func (c *client) end() error { return errors.Join(c.Close(), c.conn.Close()) }

var task = broker.NewTask[[]byte](taskName, broker.TaskConfig{Queue: queue, Codec: broker.Raw})

// A load is publishers and workers, on an endpoint.
type load struct {
	b      *bench
	ledger *ledger
	target int // confirmed tasks
	rate   int // publishes a second at most

	clients []*client // of publishers, then those of workers

	began      time.Time
	publishing sync.WaitGroup
	enough     atomic.Bool // no more faults follow, so the publishers may end
	stopped    context.CancelFunc
	working    sync.WaitGroup
	workErrs   []error

	mu   sync.Mutex
	errs map[string]int // of publishes, by what they say
}

// begin starts publishers and, unless there are others, workers.
func (b *bench) begin(ctx context.Context, url string, confirm broker.Confirm, target, rate int, workers bool) (l *load, err error) {
	l = &load{b: b, ledger: newLedger(6 * target), target: target, rate: rate, errs: make(map[string]int)}
	log := b.logger()
	n := clients
	if workers {
		n += workerCount
	}
	for range n {
		c, err := connect(url, confirm, log)
		if err != nil {
			return nil, errors.Join(err, l.disconnect())
		}
		l.clients = append(l.clients, c)
	}
	running, stop := context.WithCancel(ctx)
	l.stopped = stop
	if workers {
		for _, c := range l.clients[clients:] {
			w, err := newWorker(c, lease, log, l.ledger.ran)
			if err != nil {
				return nil, errors.Join(err, l.disconnect())
			}
			l.working.Go(func() {
				if err := w.Run(running); err != nil {
					l.mu.Lock()
					l.workErrs = append(l.workErrs, err)
					l.mu.Unlock()
				}
			})
		}
	}
	l.began = time.Now()
	for i := range publishers {
		l.publishing.Go(func() { l.publish(ctx, l.clients[i%clients]) })
	}
	return l, nil
}

// newWorker returns a worker that takes note of what it runs.
func newWorker(c *client, lease time.Duration, log *slog.Logger, ran func(n int)) (*broker.Worker, error) {
	w, err := broker.NewWorker(c.Client, broker.WorkerConfig{Concurrency: concurrency, Lease: lease, Logger: log})
	if err != nil {
		return nil, err
	}
	task.Handle(w, func(_ context.Context, arg []byte) error {
		n, err := number(arg)
		if err != nil {
			return err
		}
		if n%slowEvery == 0 {
			time.Sleep(slowFor)
		}
		ran(n)
		return nil
	})
	return w, nil
}

// publish publishes until there is enough.
func (l *load) publish(ctx context.Context, c *client) {
	for ctx.Err() == nil && !(l.enough.Load() && l.confirmed() >= l.target) {
		n, ok := l.ledger.take()
		if !ok {
			return
		}
		if early := time.Until(l.began.Add(time.Duration(n) * time.Second / time.Duration(l.rate))); early > 0 {
			time.Sleep(early)
		}
		switch _, err := task.Publish(ctx, c.Client, argument(n)); {
		case err == nil:
			l.ledger.published(n, wasConfirmed)
		case errors.Is(err, broker.ErrUnconfirmed):
			l.ledger.published(n, wasUnconfirmed)
		default:
			l.ledger.published(n, wasFailed)
			l.mu.Lock()
			l.errs[err.Error()]++
			l.mu.Unlock()
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func (l *load) confirmed() int { return int(l.ledger.done.Load()) }

// reach waits until so many publishes were confirmed.
func (l *load) reach(ctx context.Context, n int) error {
	for l.confirmed() < n {
		if int(l.ledger.next.Load()) > len(l.ledger.entries) {
			return fmt.Errorf("of %d publishes %d were confirmed: errors are %v", len(l.ledger.entries), l.confirmed(), l.errs)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// finish lets the publishers reach the target, and waits until the queue is empty
// or nothing more happens. What is left then is for the search to find.
func (l *load) finish(ctx context.Context) error {
	l.enough.Store(true)
	err := l.reach(ctx, l.target)
	l.publishing.Wait()
	if err != nil {
		return err
	}
	for end := time.Now().Add(drainLimit); time.Now().Before(end); {
		info, err := l.clients[0].Queue(ctx, queue)
		if err == nil && info.Ready+info.InFlight+info.Delayed == 0 {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// stop ends the workers. It returns how many acks they were told of.
func (l *load) stop() (acked int64, err error) {
	l.stopped()
	l.publishing.Wait()
	l.working.Wait()
	for _, c := range l.clients {
		acked += int64(c.Stats().Succeeded)
	}
	return acked, errors.Join(append(l.workErrs, l.disconnect())...)
}

func (l *load) disconnect() (err error) {
	for _, c := range l.clients {
		err = errors.Join(err, c.end())
	}
	l.clients = nil
	return err
}

// search looks for tasks in all keys of all primaries, and returns how many acks
// they count.
func (l *load) search(ctx context.Context, nodes []*redistest.Server) (acked int64, err error) {
	for _, node := range nodes {
		rdb := redis.NewClient(node.Options())
		n, err := l.searchNode(ctx, rdb)
		if err := errors.Join(err, rdb.Close()); err != nil {
			return 0, fmt.Errorf("search %s: %w", node.Addr(), err)
		}
		acked += n
	}
	return acked, nil
}

func (l *load) searchNode(ctx context.Context, rdb *redis.Client) (acked int64, err error) {
	role, err := rdb.Do(ctx, "ROLE").Slice()
	if err != nil || role[0] != "master" {
		return 0, err
	}
	keys, err := rdb.Keys(ctx, "*").Result()
	if err != nil {
		return 0, err
	}
	for _, key := range keys {
		kind, err := rdb.Type(ctx, key).Result()
		if err != nil {
			return 0, err
		}
		switch {
		case strings.HasSuffix(key, "}:st"):
			n, err := rdb.HGet(ctx, key, "acked").Int64()
			if err != nil && !errors.Is(err, redis.Nil) {
				return 0, err
			}
			acked += n
		case kind == "stream":
			entries, err := rdb.XRange(ctx, key, "-", "+").Result()
			if err != nil {
				return 0, err
			}
			for _, e := range entries {
				for _, v := range e.Values {
					l.ledger.see(fmt.Sprint(v))
				}
			}
		case kind == "hash":
			values, err := rdb.HVals(ctx, key).Result()
			if err != nil {
				return 0, err
			}
			for _, v := range values {
				l.ledger.see(v)
			}
		case kind == "list":
			values, err := rdb.LRange(ctx, key, 0, -1).Result()
			if err != nil {
				return 0, err
			}
			for _, v := range values {
				l.ledger.see(v)
			}
		}
	}
	return acked, nil
}

// empty removes all data of primaries.
func empty(ctx context.Context, nodes []*redistest.Server) error {
	for _, node := range nodes {
		rdb := redis.NewClient(node.Options())
		err := rdb.FlushAll(ctx).Err()
		_ = rdb.Close()
		if err != nil && !strings.HasPrefix(err.Error(), "READONLY") {
			return err
		}
	}
	return nil
}
