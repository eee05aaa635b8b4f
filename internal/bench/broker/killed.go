package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/redisha/redisha/internal/bench/children"
	"github.com/redisha/redisha/internal/bench/harness"
)

const (
	killedWork  = "worker killed, its tasks run again after"
	backlogWork = "worker killed before a backlog of 100,000, its tasks run again after"
	oursShort   = "redisha, lease 1 s"
	shortLease  = time.Second

	// heldTasks is how many tasks a worker has when it is killed.
	heldTasks = 10

	// trialCount is how many workers are killed, at the same time, each with a
	// queue of its own: else waiting for them would take an hour.
	trialCount = 5

	// backlogPause is what the work on a task of the backlog takes, so that there
	// is a backlog until the end.
	backlogPause = 5 * time.Millisecond
)

var rerun = harness.Quantity{Name: "the last one after"}

// An order lets a child take tasks and hold them until it is killed. It says the
// number of each.
type order struct {
	Side     string
	Settings settings
}

func (o order) obey(say func(string)) error {
	s, err := sideNamed(o.Side)
	if err != nil {
		return err
	}
	if _, err := s.start(o.Settings, func(m message) {
		say(strconv.Itoa(m.N))
		select {}
	}); err != nil {
		return err
	}
	select {}
}

// killed measures how soon the tasks of a killed worker run again.
func (b *bench) killed(ctx context.Context) error {
	if !b.Wants(killedWork, backlogWork) {
		return nil
	}
	b.Setting("Worker killed: a process that has %d tasks is killed (SIGKILL) beside a worker that is alive; until the last of the %d runs again. %d of them at the same time, each with a queue of its own: a round is one of them. Before a backlog: the worker that is alive has as many tasks waiting, of which each takes %s, %d at a time.",
		heldTasks, heldTasks, trialCount, backlogPause, heldTasks)
	trials := trialCount
	if b.Quick {
		trials = 1
	}
	worst := func(name string, bound time.Duration) harness.Target {
		return harness.Target{Contender: name, Limit: harness.AtMost(float64(bound), harness.Worst)}
	}
	targets := []harness.Target{worst(oursShort, 2*time.Second), worst(ours, 20*time.Second)}
	if b.Quick {
		targets = targets[:1]
	}
	for _, w := range []struct {
		work    string
		backlog int
	}{{killedWork, 0}, {backlogWork, b.Count(waitingCount)}} {
		c := harness.Comparison{Work: w.work, Quantity: rerun, Cold: true, Whole: true, Targets: targets}
		var all []*mortality
		for _, v := range []struct {
			name, side string
			lease      time.Duration
		}{{oursShort, ours, shortLease}, {ours, ours, 0}, {asynqs, asynqs, 0}} {
			if v.side == asynqs && w.backlog > 0 || b.Quick && v.name != oursShort {
				continue // asynq does the backlog first; and what takes a minute is not for a quick run
			}
			x := &mortality{b: b, side: v.side, backlog: w.backlog, trials: trials, queue: fmt.Sprintf("killed-%d", len(all)),
				settings: settings{Addrs: []string{b.server.Addr()}, Concurrency: heldTasks, Lease: v.lease}}
			all = append(all, x)
			c.Contenders = append(c.Contenders, harness.Contender{Name: v.name, Close: x.end, Run: func(_ context.Context, m *harness.B) error { return x.tell(m) }})
		}
		// One after the other is set up, and all are under way before the first
		// is waited for.
		c.Contenders[0].Setup = func(ctx context.Context) error {
			if err := b.monitor.FlushAll(ctx).Err(); err != nil {
				return err
			}
			for _, x := range all {
				if err := x.begin(ctx); err != nil {
					return err
				}
			}
			return nil
		}
		if err := b.Compare(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// A mortality is a side's trials.
type mortality struct {
	b        *bench
	side     string
	queue    string // its trials' begin with it
	settings settings
	backlog  int
	trials   int

	running sync.WaitGroup
	cancel  context.CancelFunc
	results chan result
}

type result struct {
	after time.Duration
	err   error
}

// begin lets all trials begin.
func (x *mortality) begin(ctx context.Context) error {
	s, err := sideNamed(x.side)
	if err != nil {
		return err
	}
	ctx, x.cancel = context.WithCancel(ctx)
	x.results = make(chan result, x.trials)
	for i := range x.trials {
		o := x.settings
		o.Queue = fmt.Sprintf("%s-%d", x.queue, i)
		x.running.Go(func() {
			after, err := x.trial(ctx, s, o)
			x.results <- result{after, err}
		})
	}
	return nil
}

// tell takes down the next trial that has ended.
func (x *mortality) tell(m *harness.B) error {
	r := <-x.results
	m.Record(rerun, float64(r.after))
	return r.err
}

func (x *mortality) end() error {
	if x.cancel != nil {
		x.cancel()
		x.running.Wait()
	}
	return nil
}

// trial kills one worker.
func (x *mortality) trial(ctx context.Context, s side, o settings) (after time.Duration, err error) {
	p, err := s.open(o)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if err := fill(ctx, p, heldTasks+x.backlog, sizes[0]); err != nil {
		return 0, err
	}
	held := make(map[int]bool)
	ready := make(chan struct{})
	victim, err := children.Start(order{s.name, o}, func(line string) {
		n, _ := strconv.Atoi(line)
		if held[n] = true; len(held) == heldTasks {
			close(ready)
		}
	})
	if err != nil {
		return 0, err
	}
	defer victim.Kill()
	if err := victim.Await(ctx, ready); err != nil {
		return 0, err
	}
	var mu sync.Mutex
	left, all := heldTasks, make(chan struct{})
	stop, err := s.start(o, func(m message) {
		mu.Lock()
		if held[m.N] { // since ready nobody writes to it
			delete(held, m.N)
			if left--; left == 0 {
				close(all)
			}
		}
		mu.Unlock()
		if x.backlog > 0 {
			time.Sleep(backlogPause)
		}
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	select { // it is at work before the other dies
	case <-time.After(500 * time.Millisecond):
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	killed := time.Now()
	victim.Kill()
	select {
	case <-all:
		return time.Since(killed), nil
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}
