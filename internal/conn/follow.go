package conn

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/resolve"
)

// A follower keeps a client at the primary that a resolver names: it closes the
// connections to the last one, and holds commands back while there is none.
type follower struct {
	c        *Client
	resolver resolve.Resolver
	dial     dialFunc
	options  *redis.Options // of a connection to the primary, for the probe

	barrier barrier
	ctx     context.Context // ends by close
	cancel  context.CancelFunc
	tasks   sync.WaitGroup

	mu     sync.Mutex // also guards closed against tasks
	closed bool
	epoch  uint64        // of the resolver, whose former connections are closed
	moved  chan struct{} // closed when epoch changes
}

// Pauses of the probe while there is no usable primary.
const (
	minProbe = 20 * time.Millisecond
	maxProbe = 250 * time.Millisecond

	// tellAfter is how long it may last before it is logged.
	tellAfter = 250 * time.Millisecond
)

var (
	errNoPrimary = errors.New("no primary is known yet")
	errSilent    = errors.New("the server leaves commands without a reply")
)

func newFollower(c *Client, r resolve.Resolver, dial dialFunc) *follower {
	f := &follower{c: c, resolver: r, dial: dial, moved: make(chan struct{})}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

// start watches the resolver. Until that names a primary, commands wait.
func (f *follower) start() {
	f.hold(errNoPrimary, true)
	f.tasks.Go(f.watch)
}

// watch tells the client of each new primary.
func (f *follower) watch() {
	var epoch uint64
	for {
		changed := f.resolver.Changed()
		if state := f.resolver.State(); state.Epoch > epoch {
			known := epoch > 0
			if epoch = state.Epoch; known {
				f.c.registry.retire(f.c.registry.gen.Load())
			}
			f.move(epoch) // who is told of it may connect
			if known {
				f.c.newEpoch()
			}
		}
		if f.c.reader != nil {
			f.c.reader.keep(f.resolver.State().Replicas)
		}
		select {
		case <-changed:
		case <-f.ctx.Done():
			return
		}
	}
}

func (f *follower) move(epoch uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.epoch = epoch
	close(f.moved)
	f.moved = make(chan struct{})
}

// place returns the epoch to which watch has moved, and a channel that is closed
// when it moves on.
func (f *follower) place() (epoch uint64, moved <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.epoch, f.moved
}

// dialPrimary is the client's Dialer. go-redis calls it with a context of its
// own, never with the caller's.
func (f *follower) dialPrimary(ctx context.Context, network, _ string) (net.Conn, error) {
	state, gen := f.first(ctx)
	if state.Primary == "" {
		return nil, &neutralError{f.whyNone()}
	}
	nc, err := f.dial(ctx, network, state.Primary)
	if err != nil {
		return nil, f.failed(ctx, state.Epoch, err)
	}
	return f.c.registry.add(nc, state.Primary, gen)
}

// first returns the State, and the generation of a connection to its primary. It
// waits for the first primary as long as a dial may take, since a subscription
// does not pass the barrier, and until watch has closed the connections to the
// last one, with which it would close a new one.
func (f *follower) first(ctx context.Context) (*resolve.State, uint64) {
	for {
		changed := f.resolver.Changed()
		epoch, moved := f.place()
		gen := f.c.registry.gen.Load() // before the address, so that a switch in between is noticed
		state := f.resolver.State()
		if state.Primary != "" && state.Epoch <= epoch {
			return state, gen
		}
		select {
		case <-changed:
		case <-moved:
		case <-ctx.Done():
			return state, gen
		case <-f.ctx.Done():
			return state, gen
		}
	}
}

// failed notes that the primary of an epoch could not be connected to.
func (f *follower) failed(ctx context.Context, epoch uint64, err error) error {
	behind := f.barrier.down.Load() != nil
	if f.resolver.State().Epoch == epoch && !errors.Is(ctx.Err(), context.Canceled) {
		f.shut(err)
		f.resolver.Refresh()
	}
	if behind || f.resolver.State().Epoch != epoch {
		err = &neutralError{err}
	}
	return err
}

func (f *follower) whyNone() error {
	if err := f.resolver.Err(); err != nil {
		return err
	}
	return errNoPrimary
}

// shut holds commands back until the probe has found a usable primary.
func (f *follower) shut(cause error) { f.hold(cause, false) }

func (f *follower) hold(cause error, first bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || !f.barrier.shut(cause, first) {
		return
	}
	f.tasks.Go(func() {
		if f.probe(cause, first) {
			f.barrier.open()
		}
	})
}

// probe returns true once a primary is usable: for the first one it is enough
// that it is known. It dials by a client of its own, since all connections of the
// role's may hang.
func (f *follower) probe(cause error, first bool) bool {
	start, pause, told := time.Now(), minProbe, false
	for {
		changed := f.resolver.Changed()
		if f.resolver.State().Primary != "" {
			err := error(nil)
			if !first {
				err = f.ask()
			}
			if err == nil {
				if told {
					f.c.log.Info("the primary is back", "role", f.c.role, "addr", f.resolver.State().Primary, "after", time.Since(start))
				}
				return true
			}
			if o := f.barrier.down.Load(); o != nil {
				o.why.Store(&err)
			}
			cause = err
			f.resolver.Refresh()
		}
		if !first && !told && time.Since(start) >= tellAfter && f.ctx.Err() == nil {
			told = true
			f.c.log.Warn("no usable primary: commands wait, a cache does without", "role", f.c.role, "addr", f.resolver.State().Primary, "err", cause)
		}
		timer := time.NewTimer(pause - rand.N(pause/4))
		select {
		case <-changed:
			pause = minProbe
		case <-timer.C:
			pause = min(2*pause, maxProbe)
		case <-f.ctx.Done():
			timer.Stop()
			return false
		}
		timer.Stop()
	}
}

// suspect is told that the server at addr leaves a command without a reply.
func (f *follower) suspect(addr string) {
	if f.resolver.State().Primary == addr {
		f.shut(errSilent)
	}
}

// ask returns nil if the primary can be connected to, is one, and answers. What
// refuses this client alone (a password, an ACL, the number of clients) is an
// answer: commands shall see it.
func (f *follower) ask() error {
	opt := *f.options
	opt.PoolSize, opt.MinIdleConns = 1, 0
	dial := opt.Dialer
	opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := dial(ctx, network, addr)
		return born(nc, err), nil
	}
	rdb := redis.NewClient(&opt)
	defer rdb.Close()
	defer context.AfterFunc(f.ctx, func() { _ = rdb.Close() })() // cancelling ends no read
	ctx, cancel := context.WithTimeout(f.ctx, opt.DialTimeout)
	defer cancel()
	err := rdb.Ping(ctx).Err()
	if isReply(err) && (outcomeOf(err) != refused || strings.Contains(err.Error(), "max number of clients")) {
		return nil
	}
	if err != nil && f.c.registry.open() > 0 {
		// It may take no further client, and serve those that it has.
		ctx, cancel := context.WithTimeout(context.WithValue(f.ctx, probingKey{}, probingKey{}), poolProbe)
		defer cancel()
		if f.c.Ping(breaker.Bypass(Once(ctx))).Err() == nil {
			return nil
		}
	}
	return err
}

// poolProbe bounds the question to the primary by a connection of the pool.
const poolProbe = 100 * time.Millisecond

type probingKey struct{}

func probing(ctx context.Context) bool { return ctx.Value(probingKey{}) != nil }

// close ends the goroutines and the resolver.
func (f *follower) close() error {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.cancel()
	f.barrier.open() // who waits sees that the client is closed
	err := f.resolver.Close()
	f.tasks.Wait()
	return err
}

// neutralError is an error that is not the server's fault, for the breaker.
type neutralError struct{ err error }

func (e *neutralError) Error() string        { return e.err.Error() }
func (e *neutralError) Unwrap() error        { return e.err }
func (e *neutralError) BreakerNeutral() bool { return true }
