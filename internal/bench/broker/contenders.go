package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/hibiken/asynq"

	"github.com/redisha/redisha/broker"
	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
)

const (
	ours     = "redisha"
	asynqs   = "asynq"
	asynqs10 = "asynq, polling each 10 ms"

	taskName = "bench.noop"
	timeout  = 30 * time.Minute
)

// sizes are those of a task's argument as JSON.
var sizes = []int{100, 1024}

// A message is the argument of a task.
type message struct {
	N    int    `json:"n"`    // 8 digits
	Text string `json:"text"` // random
}

const firstN = 10_000_000

// newMessage returns the n-th message, which has size bytes as JSON.
func newMessage(n, size int) message {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	text := make([]byte, size-len(`{"n":10000000,"text":""}`))
	for i := 0; i < len(text); {
		for bits, k := rand.Uint64(), 0; k < 10 && i < len(text); k++ {
			text[i] = letters[bits&63]
			bits >>= 6
			i++
		}
	}
	return message{N: firstN + n, Text: string(text)}
}

// Settings are what a side is opened with.
type settings struct {
	Addrs       []string // of a server, or of a Cluster's nodes
	Cluster     bool
	Queue       string
	Producers   int           // goroutines that publish at once
	Concurrency int           // of a worker
	Lease       time.Duration // of a worker of redisha; 0: the default
	Confirm     int           // replicas that confirm each publish, of redisha
}

// A producer publishes to one queue.
type producer struct {
	publish func(ctx context.Context, m message) error
	many    func(ctx context.Context, ms []message) error // nil: one after the other
	after   func(ctx context.Context, m message, delay time.Duration) error
	close   func() error
}

// A side is a contender: how its producer is opened, and how a worker is started,
// which calls handle until it is stopped.
type side struct {
	name  string
	open  func(o settings) (*producer, error)
	start func(o settings, handle func(m message)) (stop func() error, err error)
}

var sides = []side{
	{ours, openRedisha, startRedisha},
	{asynqs, openAsynq, startAsynq(0)},
}

// fairAsynq polls as often as it can without being the only load.
var fairAsynq = side{asynqs10, openAsynq, startAsynq(10 * time.Millisecond)}

func sideNamed(name string) (side, error) {
	for _, s := range append(sides, fairAsynq) {
		if s.name == name {
			return s, nil
		}
	}
	return side{}, fmt.Errorf("no contender is called %q", name)
}

// connect opens a client as redisha.Open does for the broker.
func connect(o settings) (c *broker.Client, disconnect func() error, err error) {
	scheme := "redis://"
	if o.Cluster {
		scheme = "redis+cluster://"
	}
	ep, err := endpoint.Parse(scheme + strings.Join(o.Addrs, ","))
	if err != nil {
		return nil, nil, err
	}
	quiet := slog.New(slog.DiscardHandler)
	cn, err := conn.New(conn.Config{Role: "broker", Application: "bench", Endpoint: ep, Logger: quiet})
	if err != nil {
		return nil, nil, err
	}
	cfg := broker.Config{Logger: quiet}
	if o.Confirm > 0 {
		cfg.Confirm = broker.ConfirmReplicas(o.Confirm)
	}
	if c, err = broker.New(cn, cfg); err != nil {
		return nil, nil, errors.Join(err, cn.Close())
	}
	return c, func() error { return errors.Join(c.Close(), cn.Close()) }, nil
}

func taskOf(o settings) *broker.Task[message] {
	return broker.NewTask[message](taskName, broker.TaskConfig{Queue: o.Queue, Timeout: timeout})
}

func openRedisha(o settings) (*producer, error) {
	c, disconnect, err := connect(o)
	if err != nil {
		return nil, err
	}
	task := taskOf(o)
	return &producer{
		publish: func(ctx context.Context, m message) error {
			_, err := task.Publish(ctx, c, m)
			return err
		},
		many: func(ctx context.Context, ms []message) error {
			_, err := task.PublishMany(ctx, c, ms)
			return err
		},
		after: func(ctx context.Context, m message, delay time.Duration) error {
			_, err := task.Publish(ctx, c, m, broker.After(delay))
			return err
		},
		close: disconnect,
	}, nil
}

func startRedisha(o settings, handle func(m message)) (stop func() error, err error) {
	c, disconnect, err := connect(o)
	if err != nil {
		return nil, err
	}
	w, err := broker.NewWorker(c, broker.WorkerConfig{
		Concurrency: o.Concurrency, Lease: o.Lease, Logger: slog.New(slog.DiscardHandler),
		Middleware: []broker.Middleware{func(next broker.Handler) broker.Handler {
			return func(ctx context.Context, d *broker.Delivery) error { return next(ctx, d) }
		}},
	})
	if err != nil {
		return nil, errors.Join(err, disconnect())
	}
	taskOf(o).Handle(w, func(_ context.Context, m message) error {
		handle(m)
		return nil
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	return func() error {
		cancel()
		return errors.Join(<-ended, disconnect())
	}, nil
}

// asynqPool is how many connections asynq gets for so many producers or more.
const asynqPool = 64

func asynqConn(o settings) asynq.RedisConnOpt {
	if o.Cluster {
		return asynq.RedisClusterClientOpt{Addrs: o.Addrs}
	}
	opt := asynq.RedisClientOpt{Addr: o.Addrs[0]}
	if o.Producers >= asynqPool || o.Concurrency >= asynqPool {
		opt.PoolSize = asynqPool
	}
	return opt
}

func openAsynq(o settings) (*producer, error) {
	c := asynq.NewClient(asynqConn(o))
	publish := func(ctx context.Context, m message, opts ...asynq.Option) error {
		payload, err := json.Marshal(m)
		if err != nil {
			return err
		}
		_, err = c.EnqueueContext(ctx, asynq.NewTask(taskName, payload), append(opts, asynq.Queue(o.Queue))...)
		return err
	}
	return &producer{
		publish: func(ctx context.Context, m message) error { return publish(ctx, m) },
		after: func(ctx context.Context, m message, delay time.Duration) error {
			return publish(ctx, m, asynq.ProcessIn(delay))
		},
		close: c.Close,
	}, nil
}

// startAsynq starts a server that looks for tasks in such intervals when it is
// idle; 0 is its default.
func startAsynq(poll time.Duration) func(o settings, handle func(m message)) (stop func() error, err error) {
	return func(o settings, handle func(m message)) (stop func() error, err error) {
		s := asynq.NewServer(asynqConn(o), asynq.Config{
			Concurrency: o.Concurrency, Queues: map[string]int{o.Queue: 1}, TaskCheckInterval: poll, LogLevel: asynq.FatalLevel,
		})
		mux := asynq.NewServeMux()
		mux.Use(func(next asynq.Handler) asynq.Handler {
			return asynq.HandlerFunc(func(ctx context.Context, t *asynq.Task) error { return next.ProcessTask(ctx, t) })
		})
		mux.HandleFunc(taskName, func(_ context.Context, t *asynq.Task) error {
			var m message
			if err := json.Unmarshal(t.Payload(), &m); err != nil {
				return err
			}
			handle(m)
			return nil
		})
		if err := s.Start(mux); err != nil {
			return nil, err
		}
		return func() error { s.Shutdown(); return nil }, nil
	}
}
