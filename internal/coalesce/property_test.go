package coalesce

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/redistest/both"
	"github.com/redisha/redisha/internal/testserver"
)

// A model is what the server holds under some keys, which does not change: values
// that nobody else has, nothing, and what is no string.
type model struct {
	keys   []string
	values map[string]string
}

func newModel(tb testing.TB, rdb redis.UniversalClient, rng *rand.Rand, n int) *model {
	tb.Helper()
	m := &model{values: make(map[string]string)}
	for i := range n {
		key := fmt.Sprintf("key:%d", i)
		m.keys = append(m.keys, key)
		switch rng.IntN(10) {
		case 0: // nothing
		case 1:
			require.NoError(tb, rdb.LPush(tb.Context(), key, "no string").Err())
		default:
			length := rng.IntN(2000)
			if rng.IntN(20) == 0 {
				length = rng.IntN(100 << 10)
			}
			// RESP in the value, so that a reader who is out of step is deceived.
			m.values[key] = fmt.Sprintf("value of %s\r\n$3\r\nfoo\r\n*1\r\n", key) + strings.Repeat(strconv.Itoa(i)+"\r\n", length/4)
			require.NoError(tb, rdb.Set(tb.Context(), key, m.values[key], 0).Err())
		}
	}
	return m
}

// check says what is wrong with what was read under key.
func (m *model) check(key string, v *Value) error {
	want, ok := m.values[key]
	if string(v.Bytes()) != want || (v.Bytes() != nil) != ok {
		return fmt.Errorf("%s holds %.80q (%d bytes), want %.80q (%d bytes)", key, v.Bytes(), len(v.Bytes()), want, len(want))
	}
	return nil
}

// outcomes counts what became of reads.
type outcomes struct {
	answered, left, failed atomic.Int64
	last                   atomic.Pointer[error] // of those that failed
}

// play reads a key or some and judges what comes. What the caller's context or
// the network spoils is no mistake.
func (m *model) play(ctx context.Context, r *Reader, rng *rand.Rand, n *outcomes) error {
	count := func(err error) bool {
		switch {
		case err == nil:
			n.answered.Add(1)
		case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
			n.left.Add(1)
		default:
			n.failed.Add(1)
			n.last.Store(&err)
		}
		return err == nil
	}
	if rng.IntN(8) > 0 {
		key := m.keys[rng.IntN(len(m.keys))]
		if rng.IntN(4) == 0 {
			key = m.keys[rng.IntN(3)] // which others want as well
		}
		v, err := r.Get(ctx, key)
		defer v.Release()
		if !count(err) {
			return nil
		}
		return m.check(key, &v)
	}
	keys := make([]string, rng.IntN(40))
	for i := range keys {
		keys[i] = m.keys[rng.IntN(len(m.keys))]
	}
	var wrong error
	results := r.GetMany(ctx, keys)
	if len(results) != len(keys) {
		return fmt.Errorf("%d results for %d keys", len(results), len(keys))
	}
	for i := range results {
		if count(results[i].Err) {
			wrong = errors.Join(wrong, m.check(keys[i], &results[i].Value))
		}
		results[i].Release()
	}
	return wrong
}

// crowd lets many play at once, of whom some leave early.
func (m *model) crowd(t *testing.T, r *Reader, seed uint64, players, rounds int) *outcomes {
	var (
		n   outcomes
		all sync.WaitGroup
	)
	for p := range players {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(p)))
			for range rounds {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				if rng.IntN(4) == 0 {
					time.AfterFunc(rand.N(2*time.Millisecond), cancel)
				}
				err := m.play(ctx, r, rng, &n)
				cancel()
				if err != nil {
					t.Errorf("player %d: %v", p, err)
					return
				}
			}
		})
	}
	all.Wait()
	t.Logf("%d answered, %d left, %d failed; %+v", n.answered.Load(), n.left.Load(), n.failed.Load(), r.Stats())
	if err := n.last.Load(); err != nil {
		t.Logf("the last failure: %v", *err)
	}
	return &n
}

func TestEachReadGetsItsOwnKeysReply(t *testing.T) {
	both.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		for protocol := 2; protocol <= 3; protocol++ {
			t.Run(fmt.Sprint("RESP", protocol), func(t *testing.T) {
				require.NoError(t, rdb.FlushAll(t.Context()).Err())
				seed := seed(t)
				m := newModel(t, rdb, rand.New(rand.NewPCG(seed, 0)), 200)
				opt := *rdb.(*redis.Client).Options()
				opt.Protocol = protocol
				other := redis.NewClient(&opt)
				defer other.Close()
				cn, err := conn.Of(other)
				require.NoError(t, err)
				r := reader(t, cn, Config{Timeout: 30 * time.Second})
				n := m.crowd(t, r, seed, 64, 50)
				require.Zero(t, n.failed.Load())
				require.NotZero(t, n.left.Load())
				require.NotZero(t, r.Stats().Batches)
				require.NotZero(t, r.Stats().Shared)
			})
		}
	})
}

// Whatever the server and the network do, whoever leaves when, each read that is
// answered has its own key's value, and ends in time.
func TestEachReadGetsItsOwnKeysReplyThroughFaults(t *testing.T) {
	var answered, left, failed int64
	rounds := 3
	if os.Getenv("REDISHA_TEST_SOAK") == "1" {
		rounds = 100
	}
	for range rounds {
		synctest.Test(t, func(t *testing.T) {
			seed := seed(t)
			srv := testserver.New(t)
			srv.SetLatency(100 * time.Microsecond)
			m := newModel(t, srv.Client(t), rand.New(rand.NewPCG(seed, 0)), 100)
			r := open(t, srv, Config{Timeout: 250 * time.Millisecond})
			var (
				n          outcomes
				all, chaos sync.WaitGroup
			)
			for p := range 40 {
				all.Go(func() {
					rng := rand.New(rand.NewPCG(seed, uint64(p)))
					for range 50 {
						patience := time.Duration(rng.IntN(300)+1) * time.Millisecond
						if rng.IntN(3) == 0 {
							patience = time.Duration(rng.IntN(1000)) * time.Microsecond
						}
						ctx, cancel := context.WithTimeout(t.Context(), patience)
						start := time.Now()
						err := m.play(ctx, r, rng, &n)
						cancel()
						if took := time.Since(start); err != nil || took > patience+time.Millisecond {
							t.Errorf("player %d: %v after %s of %s", p, err, took, patience)
							return
						}
						time.Sleep(time.Duration(rng.IntN(500)) * time.Microsecond)
					}
				})
			}
			over := make(chan struct{})
			chaos.Go(func() { harm(srv, rand.New(rand.NewPCG(seed, 1<<32)), over) })
			all.Wait()
			close(over)
			chaos.Wait()
			require.NoError(t, r.Close(t.Context()))
			synctest.Wait()
			require.Zero(t, underway(r))
			t.Logf("%d answered, %d left, %d failed", n.answered.Load(), n.left.Load(), n.failed.Load())
			answered, left, failed = answered+n.answered.Load(), left+n.left.Load(), failed+n.failed.Load()
			time.Sleep(2 * time.Second) // after failed dials, go-redis looks once a second whether it is closed
		})
	}
	require.Greater(t, answered, int64(1000))
	require.NotZero(t, left)
	require.NotZero(t, failed)
}

func upTo(rng *rand.Rand, d time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(d))) }

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
		switch rng.IntN(8) {
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
			srv.SetError("ERR no luck today", "MGET")
			pause(50 * time.Millisecond)
			srv.SetError("", "MGET")
		case 5:
			srv.SetError("NOPERM no MGET today", "MGET")
			pause(50 * time.Millisecond)
			srv.SetError("", "MGET")
		case 6:
			srv.SetLatency(100*time.Microsecond + upTo(rng, 2*time.Millisecond))
		case 7:
			srv.Stop()
			pause(50 * time.Millisecond)
			_ = srv.Restart()
		}
	}
	srv.SetLoading(0)
	srv.CutReplies(0)
}

// The same with a real server, threads that really run at once, and connections
// that are cut before, after, and in the middle of a reply.
func TestEachReadGetsItsOwnKeysReplyOfARealServer(t *testing.T) {
	seed := seed(t)
	srv := redistest.Shared(t)
	proxy := redistest.NewProxy(t, srv.Addr())
	m := newModel(t, srv.Client(t), rand.New(rand.NewPCG(seed, 0)), 300)
	r := reader(t, own(t, conn.Config{Breaker: off, FailFast: true}, "redis://"+proxy.Addr()), Config{Timeout: 20 * time.Second})
	over := make(chan struct{})
	var chaos sync.WaitGroup
	chaos.Go(func() {
		rng := rand.New(rand.NewPCG(seed, 1<<32))
		for {
			select {
			case <-over:
				return
			case <-time.After(upTo(rng, 20*time.Millisecond)):
			}
			switch rng.IntN(3) {
			case 0:
				proxy.CutReplies(1)
			case 1:
				proxy.CutRequests(1)
			case 2:
				proxy.Cut()
			}
		}
	})
	n := m.crowd(t, r, seed, 64, 100)
	close(over)
	chaos.Wait()
	proxy.CutReplies(0)
	proxy.CutRequests(0)
	require.Greater(t, n.answered.Load(), int64(1000))
}

// A server that closes the connection in the middle of its reply, at any byte:
// what had come is forgotten, and the keys are read once more.
func TestAReplyThatIsCutInTheMiddleIsReadAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		text := func(keys []string) string {
			s := fmt.Sprintf("*%d\r\n", len(keys))
			for _, key := range keys {
				if key == "none" {
					s += "$-1\r\n"
				} else {
					s += fmt.Sprintf("$%d\r\n%s\r\n", len(key), key)
				}
			}
			return s
		}
		for cut := range len(text([]string{"one", "none", "three"})) {
			var mgets atomic.Int32
			dial := func(context.Context, string, string) (net.Conn, error) {
				client, server := net.Pipe()
				go serve(server, func(words []string) (reply string, last bool) {
					switch words[0] {
					case "mget":
						if mgets.Add(1) == 1 {
							return text(words[1:])[:cut], true
						}
						return text(words[1:]), false
					case "role":
						return "*1\r\n$6\r\nmaster\r\n", false
					}
					return "-ERR unknown command\r\n", false
				})
				return client, nil
			}
			r := reader(t, own(t, conn.Config{Dialer: dial, FailFast: true, Breaker: off}, "redis://127.0.0.1:6379?protocol=2&pool_size=1024"), Config{})
			free := occupy(single(r))
			var callers sync.WaitGroup
			for key, want := range map[string]string{"one": "one", "none": "", "three": "three"} {
				callers.Go(func() { holds(t, r, key, want) })
			}
			synctest.Wait()
			free()
			callers.Wait()
			require.Equal(t, int32(2), mgets.Load())
			require.NoError(t, r.cn.Close())
			synctest.Wait()
		}
	})
}

// serve answers commands until it is to close the connection.
func serve(nc net.Conn, answer func(words []string) (reply string, last bool)) {
	defer nc.Close()
	rd := bufio.NewReader(nc)
	line := func() string {
		s, _ := rd.ReadString('\n')
		return strings.TrimSpace(s)
	}
	for {
		head := line()
		if head == "" {
			return
		}
		n, _ := strconv.Atoi(head[1:])
		words := make([]string, n)
		for i := range words {
			line()
			words[i] = line()
		}
		words[0] = strings.ToLower(words[0])
		reply, last := answer(words)
		if _, err := io.WriteString(nc, reply); err != nil || last {
			return
		}
	}
}

func TestCloseUnderLoadAnswersOrRefusesEachRead(t *testing.T) {
	seed := seed(t)
	srv := redistest.Shared(t)
	m := newModel(t, srv.Client(t), rand.New(rand.NewPCG(seed, 0)), 100)
	cn := own(t, conn.Config{FailFast: true}, srv.URL())
	for round := range 20 {
		r := New(cn, Config{Timeout: 20 * time.Second})
		var all sync.WaitGroup
		var answered atomic.Int64
		for p := range 64 {
			all.Go(func() {
				rng := rand.New(rand.NewPCG(seed+uint64(round), uint64(p)))
				for {
					key := m.keys[rng.IntN(len(m.keys))]
					v, err := r.Get(context.Background(), key)
					if err != nil {
						if !errors.Is(err, conn.ErrClosed) {
							t.Error(err)
						}
						return
					}
					answered.Add(1)
					if err := m.check(key, &v); err != nil {
						t.Error(err)
					}
					v.Release()
				}
			})
		}
		for answered.Load() < 500 {
			time.Sleep(time.Millisecond)
		}
		require.NoError(t, r.Close(t.Context()))
		require.Zero(t, underway(r))
		all.Wait()
	}
}

// Slots move from node to node while keys are read: no read gets another key's
// value, and none fails.
func TestEachReadGetsItsOwnKeysReplyWhileSlotsMove(t *testing.T) {
	seed := seed(t)
	cluster := redistest.NewCluster(t, redistest.ClusterConfig{Replicas: -1})
	rdb := cluster.Client(t)
	m := newModel(t, rdb, rand.New(rand.NewPCG(seed, 0)), 300)
	r := reader(t, own(t, conn.Config{Breaker: off}, cluster.URL()), Config{Timeout: 50 * time.Second})
	var (
		over  atomic.Bool
		moves sync.WaitGroup
		moved int
	)
	moves.Go(func() {
		rng := rand.New(rand.NewPCG(seed, 1<<32))
		for !over.Load() {
			slot, err := cluster.Slot(t.Context(), m.keys[rng.IntN(len(m.keys))])
			if err == nil {
				err = cluster.MigrateSlot(t.Context(), slot, cluster.Nodes[rng.IntN(3)])
			}
			if err != nil && !strings.Contains(err.Error(), "already") {
				t.Error(err)
				return
			}
			moved++
		}
	})
	var n *outcomes
	for range 5 {
		n = m.crowd(t, r, seed, 48, 20)
		require.Zero(t, n.failed.Load())
	}
	over.Store(true)
	moves.Wait()
	require.NotZero(t, moved)
	require.Len(t, r.servers.All(), 3)
	require.Greater(t, r.Stats().Keys, r.Stats().Batches)

	t.Run("also by GetMany of a thousand", func(t *testing.T) {
		keys := make([]string, 0, 1200)
		for range 4 {
			keys = append(keys, m.keys...)
		}
		results := r.GetMany(t.Context(), keys)
		for i := range results {
			require.NoError(t, results[i].Err)
			require.NoError(t, m.check(keys[i], &results[i].Value))
			results[i].Release()
		}
	})
}
