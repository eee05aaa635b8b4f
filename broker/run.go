package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// A run is one call of [Worker.Run].
type run struct {
	w        *Worker
	name     string // of this instance
	handlers map[string]*handler
	sources  []*source
	floor    *floor
	blockers chan struct{} // a token for each blocking read; nil: all sources may block

	deadlines deadlines // of the handlers that wait for their context

	base    context.Context // for calls that must go on while the run drains; ends when verdicts are given up
	giveUp  context.CancelFunc
	storing context.Context // for storing results; ends with settled
	unstore context.CancelFunc
	reads   context.Context // for those of fetchers and maintenance; ends when they must not hold the drain any longer
	unread  context.CancelFunc
	stop    context.Context // ends when no more tasks shall be taken
	stopAll context.CancelCauseFunc
	work    context.Context // parent of the handlers' contexts
	cancel  context.CancelCauseFunc
	cut     atomic.Bool   // a handler ran on after DrainTimeout
	lost    atomic.Int64  // verdicts that could not be stored
	settled chan struct{} // closed when all verdicts are stored, or given up
	dead    chan struct{} // closed when the connection will never serve again
	die     sync.Once

	executors sync.WaitGroup
	fetchers  sync.WaitGroup
	settlers  sync.WaitGroup
	keepers   sync.WaitGroup // heartbeats and maintenance
}

// Run takes tasks and runs their handlers until ctx is done. Then it takes no
// more, lets the running handlers finish for at most WorkerConfig.DrainTimeout,
// ends the contexts of those that remain with [ErrDrainTimeout], and returns
// once every handler has returned and all verdicts are stored. Tasks that were
// not finished are given back and visible at once.
//
// While Redis is away, Run tries again until it is back. It returns nil after a
// complete drain; else what is wrong with the worker or its handlers,
// ErrDrainTimeout, how many verdicts could not be stored, or [ErrClosed] if the
// client was closed meanwhile. A worker may be run again then, but not twice at once.
func (w *Worker) Run(ctx context.Context) error {
	if w == nil {
		return errors.New("broker: run: nil worker: pass one made by NewWorker")
	}
	if err := w.start(ctx); err != nil {
		return fmt.Errorf("broker: run: %w", err)
	}
	defer w.stop()
	r := &run{
		w: w, name: instanceName(), handlers: w.handlers, floor: newFloor(w.cfg.Concurrency),
		settled: make(chan struct{}), dead: make(chan struct{}),
	}
	r.stop, r.stopAll = context.WithCancelCause(ctx)
	defer r.stopAll(nil)
	r.base, r.giveUp = context.WithCancel(context.WithoutCancel(ctx))
	defer r.giveUp()
	r.work, r.cancel = context.WithCancelCause(r.base)
	defer r.cancel(nil)
	r.reads, r.unread = context.WithCancel(r.base)
	defer r.unread()
	r.storing, r.unstore = context.WithCancel(r.base)
	defer r.unstore()
	defer r.stopWithClient()()

	if err := r.open(); err != nil {
		return r.end(err)
	}
	if r.stop.Err() != nil {
		return r.end(nil)
	}
	r.launch()
	<-r.stop.Done()
	return r.end(r.drain())
}

// stopWithClient ends the run when the client is closed: its fetching as soon as
// that begins, its handlers when Close no longer waits.
func (r *run) stopWithClient() (detach func()) {
	done := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		select {
		case <-r.w.c.closing:
			r.stopAll(ErrClosed)
		case <-done:
			return
		}
		select {
		case <-r.w.c.life.Done():
			r.cancel(ErrClosed)
		case <-done:
		}
	})
	return func() {
		close(done)
		watcher.Wait()
	}
}

// closing reports whether the client is being closed.
func (r *run) closing() bool {
	select {
	case <-r.w.c.closing:
		return true
	default:
		return false
	}
}

// fail ends the run for an error that will not pass.
func (r *run) fail(err error) {
	r.stopAll(err)
	r.cancel(err)
	r.die.Do(func() { close(r.dead) })
}

// end chooses what Run returns.
func (r *run) end(err error) error {
	if cause := context.Cause(r.stop); fatal(cause) {
		err = cause
	}
	if err == nil || errors.Is(err, ErrDrainTimeout) {
		return err
	}
	return fmt.Errorf("broker: run: %w", err)
}

// open finds the partitions of the queues, for as long as that takes.
func (r *run) open() error {
	var logged time.Time
	for _, name := range r.w.queueNames() {
		for pause := newPause(); ; {
			q, err := r.w.c.queue(r.stop, name)
			if err == nil {
				var sources []*source
				for _, p := range q.partitions {
					sources = append(sources, newSource(r, p))
				}
				r.floor.join(r.w.limit(name), sources)
				r.sources = append(r.sources, sources...)
				break
			}
			if r.stop.Err() != nil {
				return nil // stopped before it began
			}
			if outcomeOf(err, true) == final || errors.Is(err, errMetadata) {
				return fmt.Errorf("queue %q: %w", name, err)
			}
			if time.Since(logged) > 10*time.Second {
				logged = time.Now()
				r.w.log.Warn("queue not reachable", "queue", name, "err", err)
			}
			pause.wait(r.stop.Done())
		}
	}
	// Each blocking read has a connection for itself.
	if have := r.w.c.conn.Stats().Pool.MaxTotal; have > 0 && have/2 < len(r.sources) {
		r.blockers = make(chan struct{}, have/2)
		r.w.log.Info("more partitions than half of the pool's connections: some are polled", "partitions", len(r.sources), "connections", have)
	}
	return nil
}

func (r *run) launch() {
	for range r.w.cfg.Concurrency {
		r.executors.Go(func() { r.execute(nil) })
	}
	// A new primary may have lost acknowledgements and heartbeats.
	detach := r.w.c.conn.OnEpoch(func(uint64) {
		for _, s := range r.sources {
			s.suspect()
		}
	})
	context.AfterFunc(r.stop, detach)
	for _, s := range r.sources {
		r.keepers.Go(s.keepLease)
		r.keepers.Go(s.maintain)
		r.settlers.Go(s.settle)
		r.fetchers.Go(s.fetch)
	}
}

// minGiveBack is what a stopping fetcher has for its last calls, at least.
const minGiveBack = time.Second

// drain ends what launch has started, from the source to the end.
func (r *run) drain() error {
	limit := max(r.w.cfg.DrainTimeout, 0)
	timer := time.AfterFunc(limit, func() { r.cancel(ErrDrainTimeout) })
	defer timer.Stop()
	// What was delivered and not started is given back, which takes a moment.
	unread := time.AfterFunc(max(limit, minGiveBack), r.unread)
	defer unread.Stop()

	fetched := make(chan struct{})
	go func() {
		r.fetchers.Wait()
		close(fetched)
	}()
	r.unblock(fetched)
	<-fetched
	r.floor.close()

	r.executors.Wait()
	timer.Stop()

	// Nobody adds verdicts any more.
	for _, s := range r.sources {
		s.inbox.close()
	}
	giveUp := time.AfterFunc(settleTimeout, func() {
		close(r.settled)
		r.unstore()
	})
	// A connection may try for a minute.
	cut := time.AfterFunc(settleTimeout+time.Second, r.giveUp)
	defer cut.Stop()
	r.settlers.Wait()
	if giveUp.Stop() {
		close(r.settled)
	}
	r.keepers.Wait()
	var leavers sync.WaitGroup // a server that is away costs its time once
	for _, s := range r.sources {
		leavers.Go(s.leave)
	}
	leavers.Wait()
	if r.cut.Load() {
		return ErrDrainTimeout
	}
	if n := r.lost.Load(); n > 0 {
		return fmt.Errorf("the verdicts of %d task(s) could not be stored within %s: these tasks will run again", n, settleTimeout)
	}
	return nil
}

// unblock ends the blocking reads until all fetchers have ended. Where it is not
// possible, they end by themselves after blockFor.
func (r *run) unblock(fetched <-chan struct{}) {
	ctx, cancel := context.WithTimeout(r.base, time.Second)
	defer cancel()
	for {
		tried := false
		for _, s := range r.sources {
			tried = s.unblock(ctx) || tried
		}
		if !tried {
			return
		}
		timer := time.NewTimer(20 * time.Millisecond)
		select {
		case <-fetched:
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// A pause grows with each wait in a row, from 20 ms to a second.
type pause struct{ next time.Duration }

func newPause() *pause { return &pause{20 * time.Millisecond} }

func (p *pause) reset() { p.next = 20 * time.Millisecond }

// wait waits, or until one of done is closed.
func (p *pause) wait(done ...<-chan struct{}) {
	var other <-chan struct{}
	if len(done) > 1 {
		other = done[1]
	}
	timer := time.NewTimer(p.next)
	defer timer.Stop()
	p.next = min(2*p.next, time.Second)
	select {
	case <-timer.C:
	case <-done[0]:
	case <-other:
	}
}
