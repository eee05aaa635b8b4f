package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redisha/redisha/internal/redistest"
)

// A fault is what happens to the primary.
type fault string

const (
	kill     fault = "primary killed"
	stop     fault = "primary stopped"
	failover fault = "SENTINEL FAILOVER"
)

// inflict does it to the primary.
func (f fault) inflict(ctx context.Context, s *redistest.Sentinels, primary *redistest.Server) error {
	switch f {
	case kill:
		primary.Kill()
		return nil
	case stop:
		return primary.Pause()
	}
	var err error
	for _, sentinel := range s.Sentinels {
		if _, err = do(ctx, sentinel, "SENTINEL", "FAILOVER", s.MasterName()); err == nil {
			return nil
		}
	}
	return err
}

// An outcome is what a round showed.
type outcome struct {
	zero           time.Time     // the Sentinels' first announcement
	fault          time.Duration // the fault before it, below 0
	promoted       time.Duration
	set, push, sub time.Duration // recovery after the announcement; noRecovery if there was none
	sets, pushes   tally
	story          string // of the Sentinels and of the client
}

const noRecovery = time.Duration(1<<63 - 1)

// errUnsettled says that a round showed nothing, since the servers did not do
// what they should: it is tried again.
var errUnsettled = errors.New("the servers did not fail over as they should")

// A stage is where rounds take place: servers, and who observes them.
type stage struct {
	*redistest.Sentinels
	news   *observer
	broken func() error // breaks Sentinels before a round; nil: none
}

const (
	warmUp       = 700 * time.Millisecond
	recoverLimit = 15 * time.Second
	after        = 2 * time.Second // how long the writers go on after all have recovered
)

// round lets a fault happen to a client's primary.
func (s *stage) round(ctx context.Context, f fault, addrs []string, open opener) (o outcome, err error) {
	primary, err := s.prepare(ctx)
	if err != nil {
		return o, err
	}
	c, err := open(addrs, s.MasterName())
	if err != nil {
		return failedToOpen(err), nil
	}
	defer func() { err = errors.Join(err, c.close()) }()

	p := s.play(ctx, c)
	defer p.stop()
	time.Sleep(warmUp + rand.N(200*time.Millisecond))
	next, err := s.strike(ctx, f, primary, &o)
	if err != nil {
		return o, err
	}
	p.await(o.zero.Add(o.promoted), strconv.Itoa(next.Port()), o.zero.Add(recoverLimit))
	time.Sleep(after)
	p.stop()
	if err := p.judge(ctx, next, &o); err != nil {
		return o, err
	}
	o.story = s.tell(o, p.writers, c)
	return o, nil
}

// failedToOpen is the outcome of a round for a client that there is not.
func failedToOpen(err error) outcome {
	return outcome{
		set: noRecovery, push: noRecovery, sub: noRecovery,
		sets: tally{errors: 1, kinds: map[string]int{"open: " + kindOf(err): 1}}, pushes: tally{errors: 1},
	}
}

// prepare sees to it that the servers are as a round begins with.
func (s *stage) prepare(ctx context.Context) (primary *redistest.Server, err error) {
	for range attempts {
		if err = s.settle(ctx); !errors.Is(err, errUnsettled) || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	if primary = s.Primary(); primary == nil {
		return nil, errUnsettled
	}
	if _, err := do(ctx, primary, "FLUSHALL"); err != nil {
		return nil, err
	}
	if s.broken != nil {
		err = s.broken()
	}
	return primary, err
}

// strike inflicts the fault and waits for the next primary, as the Sentinels and
// it say.
func (s *stage) strike(ctx context.Context, f fault, primary *redistest.Server, o *outcome) (next *redistest.Server, err error) {
	s.news.forget()
	struck := time.Now()
	if err := f.inflict(ctx, s.Sentinels, primary); err != nil {
		return nil, errors.Join(errUnsettled, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 25*time.Second)
	defer cancel()
	announced, err := s.news.await(ctx, "+switch-master")
	if err != nil {
		return nil, errors.Join(errUnsettled, err)
	}
	o.zero, o.fault = announced.at, struck.Sub(announced.at)
	next, err = s.AwaitPrimary(ctx, primary.Addr())
	if err != nil {
		return nil, errors.Join(errUnsettled, err)
	}
	if a, ok := s.news.first("+promoted-slave"); ok && a.at.Before(announced.at) {
		o.promoted = a.at.Sub(announced.at)
	}
	return next, nil
}

// tell puts together what happened when, for who wants to know why.
func (s *stage) tell(o outcome, writers []*writer, c client) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%8.1f ms  fault\n", ms(o.fault))
	b.WriteString(s.news.story(o.zero))
	b.WriteString(tellWriters(o.zero, writers, c))
	return b.String()
}

func tellWriters(zero time.Time, writers []*writer, c client) string {
	var b strings.Builder
	b.WriteString(c.log.story(zero))
	for _, w := range writers {
		for n, call := range w.calls {
			if took := call.ended.Sub(call.began); call.err != nil || took > 50*time.Millisecond {
				fmt.Fprintf(&b, "%8.1f ms  writer %s: call %d took %.1f ms: %v\n", ms(call.ended.Sub(zero)), w.name, n, ms(took), call.err)
			}
		}
	}
	return b.String()
}

const channel = "failover"

// publish publishes the server's port on the server itself, whatever its role:
// so the channel is never silent at the primary, and a message tells where it
// comes from.
func publish(ctx context.Context, s *redistest.Server) {
	rdb := admin(s)
	defer func() { _ = rdb.Close() }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if rdb.Publish(ctx, channel, strconv.Itoa(s.Port())).Err() != nil {
				time.Sleep(20 * time.Millisecond)
			}
		}
	}
}

// ears take down when messages came.
type ears struct {
	mu    sync.Mutex
	heard []message
}

type message struct {
	at     time.Time
	source string
}

func (e *ears) hear(payload string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.heard = append(e.heard, message{time.Now(), payload})
}

// first returns when the first message of a source came, from a time on.
func (e *ears) first(source string, from time.Time) (time.Time, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range e.heard {
		if m.source == source && !m.at.Before(from) {
			return m.at, true
		}
	}
	return time.Time{}, false
}

// mend ends a fault of a server.
func mend(ctx context.Context, s *redistest.Server) error {
	if s.Continue() == nil {
		return nil
	}
	return s.Restart(ctx)
}

// settle mends what the last round broke, and waits until the next fault may
// happen. The Sentinels look at the nodes each second meanwhile, not each ten.
func (s *stage) settle(ctx context.Context) error {
	for _, server := range slices.Concat(s.Sentinels.Sentinels, s.Nodes) {
		if err := mend(ctx, server); err != nil {
			return err
		}
	}
	s.look(ctx, 1000)
	defer s.look(ctx, 10000)
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	primary := s.Primary()
	if primary == nil {
		return errUnsettled
	}
	for _, node := range s.Nodes {
		if node != primary { // the Sentinels would see to it ten seconds later
			if _, err := do(ctx, node, "REPLICAOF", "127.0.0.1", strconv.Itoa(primary.Port())); err != nil {
				return errors.Join(errUnsettled, err)
			}
		}
	}
	if err := s.Settled(ctx); err != nil {
		return errors.Join(errUnsettled, err)
	}
	return nil
}

func (s *stage) look(ctx context.Context, every int) {
	for _, sentinel := range s.Sentinels.Sentinels {
		_, _ = do(ctx, sentinel, "SENTINEL", "DEBUG", "INFO-PERIOD", strconv.Itoa(every))
	}
}
