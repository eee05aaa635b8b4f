package batch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/testserver"
)

// A player sends requests whose replies nobody else can have.
type player struct {
	id     int
	rng    *rand.Rand
	serial int

	// Of its counter: what it is known to be at least, and how many INCRs may have
	// been executed, or may be yet.
	low, sent int64

	replied, notSent, unknown, failed int
}

func (p *player) key(what string) string { return what + "{" + strconv.Itoa(p.id) + "}" }

// newPlayers returns players who have the strings that they need.
func newPlayers(tb testing.TB, rdb redis.UniversalClient, seed uint64, n int) []*player {
	tb.Helper()
	players := make([]*player, n)
	for i := range players {
		players[i] = &player{id: i, rng: rand.New(rand.NewPCG(seed, uint64(i)))}
		require.NoError(tb, rdb.Set(tb.Context(), players[i].key("fixed"), "text", 0).Err())
	}
	return players
}

// A step is a command and what is right as its reply.
type step struct {
	words []any
	right func(cmd *redis.Cmd) error
}

func (p *player) request() (steps []step) {
	if p.rng.IntN(2) == 0 {
		steps = append(steps, step{words("incr", p.key("n")), p.counts})
	}
	for range p.rng.IntN(4) {
		p.serial++
		text := fmt.Sprint(p.id, "-", p.serial, "-", strings.Repeat("x", p.rng.IntN(1000)))
		switch p.rng.IntN(4) {
		case 0:
			steps = append(steps, step{words("get", p.key("none")), func(cmd *redis.Cmd) error {
				if cmd.Err() != redis.Nil { //nolint:errorlint // bare
					return fmt.Errorf("GET of nothing gave %v, %v", cmd.Val(), cmd.Err())
				}
				return nil
			}})
		case 1:
			steps = append(steps, step{words("lpush", p.key("fixed"), "x"), func(cmd *redis.Cmd) error {
				if !redis.HasErrorPrefix(cmd.Err(), "WRONGTYPE") {
					return fmt.Errorf("LPUSH to a string gave %v, %v", cmd.Val(), cmd.Err())
				}
				return nil
			}})
		case 2:
			key := p.key("text" + strconv.Itoa(p.serial))
			stored := false // else the SET has failed, and left the key alone or not
			steps = append(steps, step{words("set", key, text, "ex", 60), func(cmd *redis.Cmd) error {
				stored = true
				return equals("OK")(cmd)
			}}, step{words("get", key), func(cmd *redis.Cmd) error {
				if !stored && cmd.Err() == redis.Nil { //nolint:errorlint // bare
					return nil
				}
				return equals(text)(cmd)
			}})
		case 3:
			key := p.key("k")
			steps = append(steps, step{words("eval_ro", "return {KEYS[1], ARGV[1]}", 1, key, text), func(cmd *redis.Cmd) error {
				if got, err := cmd.StringSlice(); err != nil || len(got) != 2 || got[0] != key || got[1] != text {
					return fmt.Errorf("EVAL gave %v, %v: want %s and %s", got, err, key, text)
				}
				return nil
			}})
		}
	}
	return steps
}

func (p *player) counts(cmd *redis.Cmd) error {
	got, err := cmd.Int64()
	if err != nil || got <= p.low || got > p.sent {
		return fmt.Errorf("INCR gave %v, %v: want more than %d, %d at most", cmd.Val(), err, p.low, p.sent)
	}
	p.low = got
	return nil
}

func equals(want string) func(*redis.Cmd) error {
	return func(cmd *redis.Cmd) error {
		if got, err := cmd.Text(); err != nil || got != want {
			return fmt.Errorf("%q, %v: want %q", got, err, want)
		}
		return nil
	}
}

// play sends one request and judges its replies.
func (p *player) play(ctx context.Context, b *Batcher) error {
	steps := p.request()
	cmds := make([][]any, len(steps))
	for i := range steps {
		cmds[i] = steps[i].words
	}
	send := b.Do
	if p.rng.IntN(3) == 0 {
		send = b.DoBypass
	}
	replies := send(ctx, p.key("n"), cmds...)
	if len(replies) != len(steps) {
		return fmt.Errorf("%d replies to %d commands", len(replies), len(steps))
	}
	for i, cmd := range replies {
		err := cmd.Err()
		if cmds[i][0] == "incr" && !errors.Is(err, ErrNotSent) {
			p.sent++
		}
		switch {
		case errors.Is(err, ErrNotSent):
			p.notSent++
		case errors.Is(err, conn.ErrOutcomeUnknown):
			p.unknown++
		case err == nil || err == redis.Nil || redis.HasErrorPrefix(err, "WRONGTYPE"): //nolint:errorlint // bare
			p.replied++
			if err := steps[i].right(cmd); err != nil {
				return err
			}
		default:
			p.failed++
		}
	}
	return nil
}

// check compares the counter with what the player knows of it.
func (p *player) check(rdb redis.UniversalClient) error {
	n, err := rdb.Get(context.Background(), p.key("n")).Int64()
	if errors.Is(err, redis.Nil) {
		n, err = 0, nil
	}
	if err != nil || n < p.low || n > p.sent {
		return fmt.Errorf("the counter is %d, %v: want %d to %d", n, err, p.low, p.sent)
	}
	return nil
}

// seed is logged, and can be given to play a game again.
func seed(tb testing.TB) uint64 {
	tb.Helper()
	n := rand.Uint64()
	if given, err := strconv.ParseUint(os.Getenv("REDISHA_TEST_SEED"), 10, 64); err == nil {
		n = given
	}
	tb.Logf("REDISHA_TEST_SEED=%d", n)
	return n
}

func (p *player) add(o player) {
	p.replied += o.replied
	p.notSent += o.notSent
	p.unknown += o.unknown
	p.failed += o.failed
}

// total sums up what became of the players' commands.
func total(tb testing.TB, players []*player) (sum player) {
	tb.Helper()
	for _, p := range players {
		sum.add(*p)
	}
	tb.Logf("%d replies, %d not sent, %d with unknown outcome, %d failed", sum.replied, sum.notSent, sum.unknown, sum.failed)
	return sum
}

// Whatever the server and the network do, whoever leaves when: each request gets
// its own replies or errors, in time, and what was not sent is not executed.
func TestEachRequestGetsItsOwnRepliesThroughFaults(t *testing.T) {
	var sum player
	rounds := 3
	if os.Getenv("REDISHA_TEST_SOAK") == "1" {
		rounds = 100
	}
	for range rounds {
		synctest.Test(t, func(t *testing.T) {
			seed := seed(t)
			srv := testserver.New(t)
			srv.SetLatency(100 * time.Microsecond)
			b := open(t, srv)
			players := newPlayers(t, srv.Client(t), seed, 40)
			var all sync.WaitGroup
			for _, p := range players {
				all.Go(func() {
					for range 50 {
						patience := time.Duration(p.rng.IntN(300)+1) * time.Millisecond
						if p.rng.IntN(3) == 0 {
							patience = time.Duration(p.rng.IntN(1000)) * time.Microsecond
						}
						ctx, cancel := context.WithTimeout(t.Context(), patience)
						start := time.Now()
						err := p.play(ctx, b)
						cancel()
						if took := time.Since(start); err != nil || took > patience+time.Millisecond {
							t.Errorf("player %d: %v after %s of %s", p.id, err, took, patience)
							return
						}
						time.Sleep(time.Duration(p.rng.IntN(500)) * time.Microsecond)
					}
				})
			}
			over := make(chan struct{})
			var chaos sync.WaitGroup
			chaos.Go(func() { harm(srv, rand.New(rand.NewPCG(seed, 1<<32)), over) })
			all.Wait()
			close(over)
			chaos.Wait()
			require.NoError(t, b.Close(t.Context()))
			synctest.Wait()
			require.Zero(t, underway(b))
			for _, p := range players {
				require.NoError(t, p.check(srv.Client(t)), "player %d", p.id)
			}
			sum.add(total(t, players))
			time.Sleep(2 * time.Second) // after failed dials, go-redis looks once a second whether it is closed
		})
	}
	require.Greater(t, sum.replied, 1000)
	require.NotZero(t, sum.notSent)
	require.NotZero(t, sum.unknown)
}

func upTo(rng *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(rng.Int64N(int64(d)))
}

// harm does harm until over is closed, and then mends everything.
func harm(srv *testserver.Server, rng *rand.Rand, over <-chan struct{}) {
	pause := func(most time.Duration) bool {
		select {
		case <-over:
			return false
		case <-time.After(upTo(rng, most)):
			return true
		}
	}
	for pause(40 * time.Millisecond) {
		switch rng.IntN(7) {
		case 0:
			srv.CutReplies(1 + rng.IntN(3))
		case 1:
			srv.CutConnections()
		case 2:
			srv.Hang(true)
			pause(200 * time.Millisecond)
			srv.Hang(false)
		case 3:
			srv.SetLoading(upTo(rng, 100*time.Millisecond))
		case 4:
			srv.SetError("TRYAGAIN Multiple keys request during rehashing of slot", "SET")
			pause(200 * time.Millisecond)
			srv.SetError("", "SET")
		case 5:
			srv.SetLatency(100*time.Microsecond + upTo(rng, 2*time.Millisecond))
		case 6:
			srv.Stop()
			pause(50 * time.Millisecond)
			_ = srv.Restart()
		}
	}
	srv.SetLoading(0)
	srv.CutReplies(0)
}

// The same with a real server, threads that really run at once, and callers who
// are cancelled at any step.
func TestEachRequestGetsItsOwnRepliesOfARealServer(t *testing.T) {
	seed := seed(t)
	srv := redistest.Shared(t)
	proxy := redistest.NewProxy(t, srv.Addr())
	b := batcher(t, own(t, conn.Config{Breaker: off}, "redis://"+proxy.Addr()))
	players := newPlayers(t, srv.Client(t), seed, 64)
	var all, chaos sync.WaitGroup
	for _, p := range players {
		all.Go(func() {
			for range 100 {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				if p.rng.IntN(4) == 0 {
					time.AfterFunc(upTo(p.rng, 2*time.Millisecond), cancel)
				}
				err := p.play(ctx, b)
				cancel()
				if err != nil {
					t.Errorf("player %d: %v", p.id, err)
					return
				}
			}
		})
	}
	over := make(chan struct{})
	chaos.Go(func() {
		rng := rand.New(rand.NewPCG(seed, 1<<32))
		for {
			select {
			case <-over:
				return
			case <-time.After(upTo(rng, 20*time.Millisecond)):
			}
			if rng.IntN(2) == 0 {
				proxy.CutReplies(1)
			} else {
				proxy.CutRequests(1)
			}
		}
	})
	all.Wait()
	close(over)
	chaos.Wait()
	proxy.CutReplies(0)
	proxy.CutRequests(0)
	require.NoError(t, b.Close(t.Context()))
	rdb := srv.Client(t)
	for _, p := range players {
		require.NoError(t, p.check(rdb), "player %d", p.id)
	}
	require.Greater(t, total(t, players).replied, 1000)
}
