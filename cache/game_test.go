package cache

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

// A game is played by several clients, each with all that a view can do at once: an
// L1, a request scope, tags, stale values, several keys, holds, callers who leave,
// loaders of all kinds, and for one of them commands that fail and outages. What is
// known of each version of a row is when its end was certain, in all processes or in
// the one that ended it; a read is judged by how old its caller may have it.
type game struct {
	*dice
	tags     bool // InvalidateTags is played, whose entries FetchMany cannot load
	rows     [gameKeys]atomic.Int64
	writing  [gameKeys]chan struct{} // holds one: a row has one writer at a time
	mu       sync.Mutex
	ends     [gameKeys][]end
	problems atomic.Int64
}

const (
	gameKeys   = 4
	gameMaxAge = 300 * time.Millisecond // of local copies
)

// An end is that of all versions before one.
type end struct {
	version int64
	at      time.Time
	player  *player
	own     bool // other processes may still have the old ones
}

// A player is a client with its view.
type player struct {
	*game
	v      *View[int, int64]
	rdb    redis.UniversalClient
	late   time.Duration // for how long it may have what another process has ended
	closed atomic.Bool
}

// floor is the least version that a caller of p may get from since on.
func (p *player) floor(key int, since time.Time) (version int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.ends[key] {
		at := e.at
		switch {
		case e.player != p && e.own:
			continue
		case e.player != p:
			at = at.Add(p.late)
		}
		if !at.After(since) {
			version = max(version, e.version)
		}
	}
	return version
}

func (p *player) ended(key int, version int64, err error) {
	if err != nil && !isOwed(err) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ends[key] = append(p.ends[key], end{version, time.Now(), p, err != nil})
}

// isOwed reports whether a Delete has failed which this process repeats.
func isOwed(err error) bool {
	var failed *KeysError[int]
	return errors.As(err, &failed) && failed.op == "delete" && !errors.Is(err, ErrClosed)
}

// read reads key, and complains if what it gets has ended too long ago. since is when
// its context got its scope, zero if it has none.
func (p *player) read(ctx context.Context, key int, since time.Time) {
	if since.IsZero() {
		since = time.Now()
	}
	floor := p.floor(key, since)
	wasClosed := p.closed.Load()
	var got int64
	var err error
	op := p.roll(7)
	switch op {
	case 0:
		got, err = p.v.Get(ctx, key)
	case 1:
		results := p.v.GetMany(ctx, []int{(key + 1) % gameKeys, key, key})
		got, err = results[2].Value, results[2].Err
	case 2:
		var e Entry[int64]
		if e, err = p.v.Lookup(ctx, key); err == nil {
			got = e.Value
		}
	case 3, 4:
		if !p.tags {
			got, err = p.fetchMany(ctx, key)
			break
		}
		fallthrough
	default:
		var e Entry[int64]
		e, err = p.v.FetchEntry(ctx, key, p.load)
		got = e.Value
	}
	switch {
	case errors.Is(err, ErrNotFound):
		for version := floor; version <= p.rows[key].Load(); version++ {
			if version%5 == 0 {
				return
			}
		}
		p.complain("read %d of key %d: absent, which it has not been since version %d", op, key, floor)
	case err == nil && got < floor:
		p.complain("read %d of key %d: got version %d, and %d was written", op, key, got, floor)
	case err != nil && !expected(err):
		p.complain("read %d of key %d: %v", op, key, err)
	case wasClosed && !errors.Is(err, ErrClosed):
		p.complain("read %d of key %d after Close: %d, %v", op, key, got, err)
	}
}

func (g *game) complain(format string, args ...any) {
	if g.problems.Add(1) < 10 {
		panic(fmt.Sprintf(format, args...))
	}
}

// expected are the errors of a game.
func expected(err error) bool {
	for _, known := range []error{ErrMiss, ErrClosed, ErrLoadFailed, errInjected, errOwed, errGoexit, errGone, context.DeadlineExceeded} {
		if errors.Is(err, known) {
			return true
		}
	}
	return strings.Contains(err.Error(), "the load panicked: injected")
}

var errGone = errors.New("the caller is gone")

// version is what the source has of key, after a while; not every loader comes so far.
func (g *game) version(ctx context.Context, key int) (int64, error) {
	g.pause()
	version := g.rows[key].Load()
	g.pause()
	switch g.roll(40) {
	case 0:
		return 0, errInjected
	case 1:
		panic("injected")
	case 2:
		runtime.Goexit()
	case 3:
		<-ctx.Done()
		return 0, ctx.Err()
	case 4:
		time.Sleep(2 * time.Second) // beyond its time
	}
	if version%5 == 0 {
		return 0, fmt.Errorf("no row %d: %w", key, ErrNotFound)
	}
	return version, nil
}

func (p *player) load(ctx context.Context, key int) (Entry[int64], error) {
	version, err := p.version(ctx, key)
	e := Entry[int64]{Value: version}
	if p.v.cfg.Tags {
		e.Tags = []string{fmt.Sprint(key), fmt.Sprint("version ", version%3)}
	}
	switch p.roll(12) {
	case 0:
		e.TTL = -1
	case 1:
		e.TTL = time.Duration(1+p.roll(1000)) * time.Millisecond
	}
	return e, err
}

// fetchMany fetches key among others.
func (p *player) fetchMany(ctx context.Context, key int) (int64, error) {
	keys := []int{key, (key + 1) % gameKeys, key, (key + 2) % gameKeys}
	values, err := p.v.FetchMany(ctx, keys[:1+p.roll(4)], func(ctx context.Context, missing []int) (map[int]int64, error) {
		seen := make(map[int]bool)
		loaded := map[int]int64{-1: -1} // what nobody has asked for
		for _, key := range missing {
			if seen[key] || !slices.Contains(keys, key) {
				p.complain("asked to load %v", missing)
			}
			seen[key] = true
			version, err := p.version(ctx, key)
			switch {
			case errors.Is(err, ErrNotFound):
			case err != nil:
				return loaded, err
			default:
				loaded[key] = version
			}
		}
		if len(loaded) == 1 {
			return nil, nil
		}
		return loaded, nil
	})
	if failed := (*KeysError[int])(nil); errors.As(err, &failed) {
		if err := failed.Errs[key]; err != nil {
			return 0, err
		}
	} else if err != nil {
		return 0, err
	}
	for k := range values {
		if !slices.Contains(keys, k) {
			p.complain("FetchMany of %v has %d", keys, k)
		}
	}
	value, ok := values[key]
	if !ok {
		return 0, ErrNotFound
	}
	return value, nil
}

// write makes a new version of a row, and ends what the caches have of the old ones.
func (p *player) write(ctx context.Context) {
	key := p.roll(gameKeys)
	select {
	case p.writing[key] <- struct{}{}:
		defer func() { <-p.writing[key] }()
	case <-ctx.Done():
		return
	}
	version := p.rows[key].Add(1)
	p.pause()
	v, another := p.v, (key+1)%gameKeys
	var opts []SetOption
	if v.cfg.Tags {
		opts = append(opts, Tags(fmt.Sprint(key)))
	}
	var err error
	op := p.roll(8)
	isAbsent := version%5 == 0
	switch {
	case op == 0 && !isAbsent:
		err = v.Set(ctx, key, version, opts...)
	case op == 1 && !isAbsent:
		err = v.SetMany(ctx, map[int]int64{key: version}, opts...)
	case op == 2 && !isAbsent:
		var done bool
		if done, err = v.Replace(ctx, key, version, opts...); err == nil && !done {
			err = errInjected // nothing has ended
		}
	case op == 3:
		var all [gameKeys]int64
		for k := range all {
			all[k] = p.rows[k].Load()
		}
		if err = v.Clear(ctx); err == nil {
			for k, version := range all {
				p.ended(k, version, nil)
			}
			return
		}
	case op == 4 && p.tags:
		err = v.InvalidateTags(ctx, fmt.Sprint(key))
	case op == 5:
		err = v.DeleteFor(ctx, time.Duration(1+p.roll(200))*time.Millisecond, key)
	case op == 6:
		if err = v.Delete(ctx, another, key); isOwed(err) {
			var failed *KeysError[int]
			_ = errors.As(err, &failed)
			if failed.Errs[key] == nil {
				err = nil
			}
		}
	default:
		err = v.Delete(ctx, key)
	}
	p.ended(key, version, err)
	if err != nil && !isOwed(err) { // whatever it has come to, this ends it
		p.ended(key, version, v.Delete(ctx, key))
	}
}

// disturb does what ends no version.
func (p *player) disturb(ctx context.Context) {
	key := p.roll(gameKeys)
	switch p.roll(4) {
	case 0:
		_ = p.v.Expire(ctx, key)
	case 1:
		_ = p.v.DeleteFor(ctx, time.Duration(1+p.roll(50))*time.Millisecond, key)
	case 2:
		_ = p.v.Delete(ctx, key)
	case 3:
		if p.v.cfg.Tags {
			_ = p.v.InvalidateTags(ctx, fmt.Sprint(key))
		}
	}
}

// outages lets a client's commands fail, all at times and some else, before or after
// they have run.
type outages struct {
	ailing
	down atomic.Bool
}

func (o *outages) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	ill := o.ailing.ProcessHook(next)
	return func(ctx context.Context, cmd redis.Cmder) error {
		if o.down.Load() && !isHandshake(cmd) {
			cmd.SetErr(errInjected)
			return errInjected
		}
		return ill(ctx, cmd)
	}
}

func (o *outages) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if !o.well.Load() && (o.down.Load() || o.roll(8) == 0) {
			for _, cmd := range cmds {
				cmd.SetErr(errInjected)
			}
			return errInjected
		}
		return next(ctx, cmds)
	}
}

func TestWhateverIsPlayedTogetherNothingStaleIsReadAndNothingStays(t *testing.T) {
	rounds := 16
	if testing.Short() {
		rounds = 4
	}
	seed := newSeed(t)
	var total Stats
	for round := range rounds {
		synctest.Test(t, func(t *testing.T) {
			s := testserver.New(t)
			g := &game{dice: &dice{r: rand.New(rand.NewPCG(seed, uint64(round)))}, tags: round%4 == 1}
			for key := range g.writing {
				g.writing[key] = make(chan struct{}, 1)
			}
			cfg := ViewConfig{Tags: round%2 == 1, LoadTimeout: time.Second, AbsentTTL: time.Second, ErrorTTL: 20 * time.Millisecond}
			if round%4 > 1 {
				cfg.TTL, cfg.StaleFor, cfg.SoftLoadTimeout = 100*time.Millisecond, 10*time.Second, time.Duration(g.roll(2))*20*time.Millisecond
			}
			var players []*player
			var ill *outages
			for n := range 4 {
				p := &player{game: g}
				opt, cfg := s.Options(), cfg
				switch n {
				case 1, 3:
					cfg.LocalEntries, cfg.LocalMaxAge = 2+g.roll(100), gameMaxAge
					opt, p.late = deaf(opt), gameMaxAge
				case 2:
					p.late = keepFor + 5*time.Second // and the load before that
				}
				rdb := open(t, opt)
				rdb.AddHook(hesitant{g.pause})
				if n == 2 {
					ill = &outages{ailing: ailing{failing: failing{g.dice, false}}}
					rdb.AddHook(ill)
				}
				p.rdb = rdb
				p.v = NewView[int, int64](newClient(t, rdb, Config{}), "v", cfg)
				players = append(players, p)
			}
			var all, some sync.WaitGroup
			over := make(chan struct{})
			all.Go(func() {
				for {
					select {
					case <-over:
						ill.well.Store(true)
						ill.down.Store(false)
						return
					case <-time.After(time.Duration(g.roll(3000)) * time.Millisecond):
						ill.down.Store(!ill.down.Load())
					}
				}
			})
			play := func(p *player, times int, turn func(ctx context.Context, since time.Time)) {
				some.Go(func() {
					defer func() {
						if r := recover(); r != nil {
							t.Errorf("round %d: %v", round, r)
						}
					}()
					ctx, since := t.Context(), time.Time{}
					for range times {
						switch g.roll(6) {
						case 0:
							ctx, since = p.v.c.Scope(t.Context()), time.Now()
						case 1:
							ctx, since = t.Context(), time.Time{}
						}
						turnCtx, cancel := context.WithCancelCause(ctx)
						if g.roll(6) == 0 {
							after := time.AfterFunc(time.Duration(g.roll(30))*time.Millisecond, func() { cancel(errGone) })
							defer after.Stop()
						}
						turn(turnCtx, since)
						cancel(nil)
						if g.roll(3) == 0 {
							g.pause()
						}
					}
				})
			}
			for n, p := range players {
				for range 6 {
					play(p, 25, func(ctx context.Context, since time.Time) { p.read(ctx, g.roll(gameKeys), since) })
				}
				for range 2 {
					play(p, 12, func(context.Context, time.Time) { p.write(t.Context()) })
				}
				play(p, 12, func(ctx context.Context, _ time.Time) { p.disturb(ctx) })
				if n == 3 { // which leaves in the middle of it
					some.Go(func() {
						time.Sleep(time.Duration(g.roll(3000)) * time.Millisecond)
						_ = p.v.c.Close()
						p.closed.Store(true)
					})
				}
			}
			some.Wait()
			close(over)
			all.Wait()
			time.Sleep(20 * time.Second) // what was owed is paid
			for n, p := range players {
				st := p.v.c.Stats()
				if n != 3 {
					require.Zero(t, st.DeletesOwed)
				}
				require.Zero(t, st.FallbacksRunning)
				p.v.flights.mu.Lock()
				require.Empty(t, p.v.flights.open)
				require.Empty(t, p.v.flights.past)
				p.v.flights.mu.Unlock()
				p.v.outage.mu.Lock()
				require.Empty(t, p.v.outage.loads)
				p.v.outage.mu.Unlock()
				total.Hits, total.LocalHits, total.ScopeHits, total.OutageHits = total.Hits+st.Hits, total.LocalHits+st.LocalHits, total.ScopeHits+st.ScopeHits, total.OutageHits+st.OutageHits
				total.FillsRefused, total.Refreshes, total.LoadsOutdated = total.FillsRefused+st.FillsRefused, total.Refreshes+st.Refreshes, total.LoadsOutdated+st.LoadsOutdated
				total.Joined, total.LeaseWaits, total.DeletesRepeated = total.Joined+st.Joined, total.LeaseWaits+st.LeaseWaits, total.DeletesRepeated+st.DeletesRepeated
			}
			expiring(t, players[0].rdb, "")
		})
	}
	t.Logf("hits %d, local %d, scope %d, outage %d; fills refused %d, refreshes %d, outdated %d, joined %d, waits %d, repeated %d", total.Hits, total.LocalHits, total.ScopeHits,
		total.OutageHits, total.FillsRefused, total.Refreshes, total.LoadsOutdated, total.Joined, total.LeaseWaits, total.DeletesRepeated)
	for _, n := range []uint64{total.Hits, total.LocalHits, total.ScopeHits, total.OutageHits, total.FillsRefused, total.Refreshes, total.LoadsOutdated, total.Joined, total.LeaseWaits, total.DeletesRepeated} {
		require.Positive(t, n, "all of it was played")
	}
}
