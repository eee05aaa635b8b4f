package lock

import (
	"context"
	"math"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest/both"
	"github.com/redisha/redisha/internal/testserver"
)

// redislock releases all keys or none.
func TestALeaseOfWhichOneKeyWasLostGivesBackTheRest(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		c := open(t, rdb, Config{CloseTimeout: 5 * time.Second})
		l := acquire(t, c, "a", Also("b", "c"), TTL(time.Hour))
		require.NoError(t, rdb.Del(ctx, "redisha:lock:{b}").Err())
		require.ErrorIs(t, l.Release(ctx), ErrLost)
		require.Eventually(t, func() bool { return rdb.Exists(ctx, "redisha:lock:{a}", "redisha:lock:{c}").Val() == 0 }, 20*time.Second, time.Millisecond)
	})
}

func TestAQuorumGivesBackTheRestToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c := p.open(t, Config{})
		l := acquire(t, c, "a", Also("b", "c"))
		for _, srv := range p.servers {
			srv.Del("redisha:lock:{b}")
		}
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
		p.quiet(t, c)
	})
}

func TestARevokedLeaseIsRevokedOnce(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		c := open(t, rdb, Config{})
		l := acquire(t, c, "k", TTL(time.Hour))
		for _, want := range []bool{true, false, false} {
			revoked, err := c.Revoke(ctx, "k", l.Token())
			require.NoError(t, err)
			require.Equal(t, want, revoked)
		}
		info, err := c.Inspect(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, Revoked, info.State)
		require.ErrorIs(t, l.Release(ctx), ErrLost)
	})
}

func TestALeaseHasAThousandKeysAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		c := open(t, srv.Client(t), Config{CloseTimeout: time.Minute})
		var more []string
		for i := range MaxKeys {
			more = append(more, strconv.Itoa(i))
		}
		_, err := c.TryAcquire(t.Context(), "first", Also(more...))
		require.EqualError(t, err, `lock: acquire "first": 1001 keys at once, want at most 1000`)
		many := make([]string, 1<<20)
		for i := range many {
			many[i] = strconv.Itoa(i)
		}
		_, err = c.TryAcquire(t.Context(), "first", Also(many...)) // it does not take minutes to tell
		require.ErrorContains(t, err, "1048577 keys at once, want at most 1000")
		l := acquire(t, c, more[0], Also(more...))
		require.NoError(t, l.Release(t.Context()))
		require.Empty(t, leaseKeys(srv))
	})
}

// The longest TTL is 292 years, and a second more is none.
func TestALeaseMayHaveTheLongestTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		c := open(t, srv.Client(t), Config{TTL: math.MaxInt64, CloseTimeout: time.Minute})
		l := acquire(t, c, "k")
		time.Sleep(time.Hour)
		require.NoError(t, l.Context().Err())
		srv.SetError("LOADING for a while")
		require.ErrorContains(t, l.Release(t.Context()), "LOADING")
		time.Sleep(time.Minute)
		srv.SetError("")
		time.Sleep(2 * time.Second)
		require.Empty(t, leaseKeys(srv))
		require.NoError(t, l.Release(t.Context()))
	})
}

func TestWhatCloseLeavesIsNotCountedAsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		c := open(t, srv.Client(t), Config{})
		l := acquire(t, c, "k")
		require.EqualValues(t, 1, total(c).Held)
		require.Error(t, c.Close())
		require.Zero(t, total(c).Held)
		require.NoError(t, l.Release(t.Context()))
		require.Zero(t, total(c).Held)
	})
}

// odd is a client of a type that cannot be compared.
type odd struct {
	redis.UniversalClient
	_ []int
}

func TestAQuorumComparesClientsOfAnyType(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer rdb.Close()
	c, err := NewQuorum([]redis.UniversalClient{odd{UniversalClient: rdb}, odd{UniversalClient: rdb}, rdb}, Config{})
	require.NoError(t, err)
	require.NoError(t, c.Close())
	_, err = NewQuorum([]redis.UniversalClient{rdb, odd{UniversalClient: rdb}, rdb}, Config{})
	require.ErrorIs(t, err, errSameServer)
	_, err = NewQuorum([]redis.UniversalClient{rdb, rdb, rdb}, Config{TTL: math.MaxInt64})
	require.ErrorContains(t, err, "want at most 24h0m0s")
}

// A server that does not answer is no other holder.
func TestAWaitWithoutAnAnswerDoesNotSayThatAnotherHasTheLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := testserver.New(t)
		rdb, n := throughNetwork(t, srv)
		c := open(t, rdb, Config{})
		require.NoError(t, acquire(t, c, "k").Release(t.Context()))
		n.silence(true)
		_, err := c.Acquire(t.Context(), "k", MaxWait(2*time.Second))
		require.ErrorContains(t, err, "no answer within 2s: ")
		require.NotErrorIs(t, err, ErrNotAcquired)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = c.Acquire(ctx, "k")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, ErrNotAcquired)
		require.EqualValues(t, 2, total(c).Failed)
		require.Zero(t, total(c).NotAcquired)
		n.silence(false)
	})
}

// Who is called and dies at once is waited for as long as his lease may be.
func TestAShortLeaseThatDiesAfterItsHandOverCostsItsTTLAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ttl = 300 * time.Millisecond
		srv := testserver.New(t)
		holder, next := open(t, srv.Client(t), Config{}), open(t, srv.Client(t), Config{TTL: ttl})
		rdb, n := throughNetwork(t, srv)
		dying := open(t, rdb, Config{TTL: ttl})
		first := acquire(t, holder, "k")
		died := make(chan struct{})
		go func() {
			defer close(died)
			if _, err := dying.Acquire(t.Context(), "k"); err != nil {
				t.Error(err)
			}
			n.silence(true)
		}()
		time.Sleep(100 * time.Millisecond)
		s := &served{start: time.Now()}
		var wg sync.WaitGroup
		s.queueUp(t, &wg, 0, next)
		s.start = time.Now()
		require.NoError(t, first.Release(t.Context()))
		<-died
		wg.Wait()
		require.LessOrEqual(t, s.at[0], ttl+50*time.Millisecond)
		n.silence(false)
	})
}
