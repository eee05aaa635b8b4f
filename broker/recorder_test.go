package broker

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/internal/testserver"
)

// ownClient returns a client as redisha opens it for results.
func ownClient(t *testing.T, url string, dial testserver.DialFunc) *conn.Client {
	t.Helper()
	ep, err := endpoint.Parse(url)
	require.NoError(t, err)
	rdb, err := conn.New(conn.Config{Role: "results", Endpoint: ep, Dialer: dial})
	require.NoError(t, err)
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// An outage of the server of results, in a bubble.
type outage struct {
	rdb        func(t *testing.T) redis.UniversalClient
	begin, end func(t *testing.T)
}

func outages() map[string]*outage {
	// One server under a client of ours, or of go-redis.
	single := func(own bool, begin, end func(*testing.T, *testserver.Server)) *outage {
		var s *testserver.Server
		return &outage{
			rdb: func(t *testing.T) redis.UniversalClient {
				s = testserver.New(t)
				if own {
					return ownClient(t, "redis://127.0.0.1:6379?pool_size=1024", s.Dial)
				}
				opt := s.Options()
				opt.MaxRetries, opt.DialerRetries, opt.ContextTimeoutEnabled = -1, 1, true
				rdb := redis.NewClient(opt)
				t.Cleanup(func() {
					_ = rdb.Close()
					time.Sleep(2 * time.Second) // its pool may still be dialling
				})
				return rdb
			},
			begin: func(t *testing.T) { begin(t, s) },
			end:   func(t *testing.T) { end(t, s) },
		}
	}
	stop := func(_ *testing.T, s *testserver.Server) { s.Stop() }
	restart := func(t *testing.T, s *testserver.Server) { require.NoError(t, s.Restart()) }
	hang := func(_ *testing.T, s *testserver.Server) { s.Hang(true) }
	goOn := func(_ *testing.T, s *testserver.Server) { s.Hang(false) }

	// A primary and its heir, watched by a Sentinel.
	var sentinel *testserver.Sentinel
	var first *testserver.Server
	watched := func(begin func(*testing.T, *testserver.Server)) *outage {
		const a, b = "192.0.2.1:6379", "192.0.2.2:6379"
		return &outage{
			rdb: func(t *testing.T) redis.UniversalClient {
				n := testserver.NewNet()
				first = testserver.New(t)
				n.Add(a, first.Dial)
				n.Add(b, testserver.New(t).Dial)
				sentinel = testserver.NewSentinel(t, n, "192.0.2.3:26379")
				sentinel.Monitor(testserver.Monitored{Name: "mymaster", Primary: a, Epoch: 1})
				return ownClient(t, "redis+sentinel://192.0.2.3:26379/mymaster?pool_size=1024", n.Dial)
			},
			begin: func(t *testing.T) { begin(t, first) },
			end:   func(*testing.T) { sentinel.Switch("mymaster", b, 2) },
		}
	}
	return map[string]*outage{
		"restart":                 single(true, stop, restart),
		"restart, plain client":   single(false, stop, restart),
		"stopped process":         single(true, hang, goOn),
		"stopped process, plain":  single(false, hang, goOn),
		"failover":                watched(stop),
		"failover from one stuck": watched(hang),
	}
}

// It once took up to twelve seconds, also for tasks that were published later.
func TestResultsAreStoredAsSoonAsTheirServerIsBack(t *testing.T) {
	for name, o := range outages() {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, _ *logs) {
				results := newResults(t, o.rdb(t), result.Config{})
				task := NewResultTask[int, int]("with", TaskConfig{})
				startWorker(t, c, WorkerConfig{Results: results, Lease: 15 * time.Second}, func(w *Worker) {
					task.Handle(w, func(_ context.Context, n int) (int, error) { return n, nil })
				})
				done := uint64(0)
				// An outage shorter than the timeout of a store, and longer ones.
				lengths := []time.Duration{time.Second, 3500 * time.Millisecond, 9 * time.Second}
				if strings.HasPrefix(name, "failover") {
					lengths = lengths[1:2] // there is one heir
				}
				for _, long := range lengths {
					o.lasts(t, long, func(n int) { publish(t, &task.Task, c, n) })
					start := time.Now()
					for done += 12; c.Stats().Succeeded < done; time.Sleep(5 * time.Millisecond) {
						require.Less(t, time.Since(start), time.Second, long)
					}
					start = time.Now()
					id := publish(t, &task.Task, c, 7)
					got, err := task.Wait(t.Context(), results, id)
					require.NoError(t, err)
					require.Equal(t, 7, got)
					require.Less(t, time.Since(start), time.Second, long)
					synctest.Wait()
					done++
				}
			})
		})
	}
}

// lasts lets the outage last for d while twelve tasks are published.
func (o *outage) lasts(t *testing.T, d time.Duration, publish func(int)) {
	o.begin(t)
	for n := range 12 {
		publish(n)
		time.Sleep(d / 12)
	}
	o.end(t)
}

// Whatever the server of results does, tasks without result are done at once.
func TestAServerOfResultsThatHangsDelaysNoOtherTask(t *testing.T) {
	for _, own := range []bool{true, false} {
		inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, _ *logs) {
			backend := testserver.New(t)
			var rdb redis.UniversalClient = backend.Client(t)
			if own {
				rdb = ownClient(t, "redis://127.0.0.1:6379?pool_size=1024", backend.Dial)
			}
			results := newResults(t, rdb, result.Config{})
			with, without := NewResultTask[int, int]("with", TaskConfig{}), NewTask[int]("without", TaskConfig{})
			again := NewResultTask[int, int]("again", TaskConfig{Backoff: func(int, error) time.Duration { return time.Hour }})
			stop := startWorker(t, c, WorkerConfig{Results: results, Lease: 15 * time.Second}, func(w *Worker) {
				with.Handle(w, func(_ context.Context, n int) (int, error) { return n, nil })
				again.Handle(w, func(context.Context, int) (int, error) { return 0, errTest })
				without.Handle(w, func(context.Context, int) error { return nil })
			})
			backend.Hang(true)
			for n := range 100 {
				publish(t, &with.Task, c, n)
				publish(t, without, c, n)
				start := time.Now()
				for c.Stats().Succeeded < uint64(n+1) {
					time.Sleep(time.Millisecond)
				}
				require.Less(t, time.Since(start), 50*time.Millisecond, n)
				time.Sleep(100 * time.Millisecond)
			}
			// Nor are retries held back, once it is known to hang.
			publish(t, &again.Task, c, 1)
			time.Sleep(100 * time.Millisecond)
			require.Equal(t, uint64(1), c.Stats().Retried)
			require.Equal(t, QueueInfo{InFlight: 100, Delayed: 1}, queueInfo(t, c, "default"))

			start := time.Now()
			require.ErrorContains(t, stop(), "the verdicts of 100 task(s) could not be stored")
			require.Less(t, time.Since(start), 10*time.Second, "it stops all the same")
			stacks := make([]byte, 1<<20)
			require.NotContains(t, string(stacks[:runtime.Stack(stacks, true)]), "storeResults", "and leaves nothing behind")
			backend.Hang(false)
			require.Equal(t, QueueInfo{InFlight: 100, Delayed: 1}, queueInfo(t, c, "default"), "they will run again")
		})
	}
}

// A server that fails is asked for one record at a time, and with pauses.
func TestAServerOfResultsThatFailsIsAskedLittle(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, _ *logs) {
		backend := testserver.New(t)
		results := newResults(t, bubbleRedis(t, backend), result.Config{})
		task := NewResultTask[int, int]("with", TaskConfig{})
		startWorker(t, c, WorkerConfig{Results: results, Lease: 15 * time.Second}, func(w *Worker) {
			task.Handle(w, func(_ context.Context, n int) (int, error) { return n, nil })
		})
		publish(t, &task.Task, c, 0)
		time.Sleep(time.Second)
		backend.SetLoading(time.Minute)
		for n := range 500 {
			publish(t, &task.Task, c, n)
		}
		errs := c.Stats().SettleErrors
		time.Sleep(30 * time.Second)
		asked := c.Stats().SettleErrors - errs
		require.LessOrEqual(t, asked, uint64(160), "records, in 30 seconds")
		require.GreaterOrEqual(t, asked, uint64(100), "else it is not noticed that the server is back")
		time.Sleep(31 * time.Second)
		require.Equal(t, QueueInfo{}, queueInfo(t, c, "default"))
	})
}

// A worker that stops waits for a server of results that is about to be back.
// Before that, only so many results pile up.
func TestResultsThatWaitAreBoundedAndStoredAtTheEnd(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, logs *logs) {
		backend := testserver.New(t)
		results := newResults(t, bubbleRedis(t, backend), result.Config{})
		task := NewTask[int]("kept", TaskConfig{Retention: time.Hour})
		stop := startWorker(t, c, WorkerConfig{Results: results, Lease: 15 * time.Second}, func(w *Worker) {
			task.Handle(w, func(context.Context, int) error { return nil })
		})
		backend.SetLoading(time.Minute)
		for n := range 3 * maxUnsettled {
			publish(t, task, c, n)
		}
		time.Sleep(20 * time.Second)
		require.Less(t, c.Stats().Started, uint64(2*maxUnsettled))
		require.Zero(t, c.Stats().Succeeded)
		backend.SetLoading(3 * time.Second)
		require.NoError(t, stop())
		require.Zero(t, logs.count("verdicts lost"))
		require.Equal(t, c.Stats().Started, c.Stats().Succeeded)
		require.Equal(t, QueueInfo{Ready: 3*maxUnsettled - int64(c.Stats().Succeeded)}, queueInfo(t, c, "default"))
	})
}

// One record that the server does not take, for whatever reason, keeps none of the
// others.
func TestOneResultThatFailsHoldsNoOther(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, _ *logs) {
		backend := testserver.New(t)
		results := newResults(t, ownClient(t, "redis://127.0.0.1:6379?pool_size=1024", backend.Dial), result.Config{})
		w, err := NewWorker(c, WorkerConfig{Results: results})
		require.NoError(t, err)
		stop, stopAll := context.WithCancelCause(t.Context())
		defer stopAll(nil)
		s := newSource(&run{w: w, base: t.Context(), storing: t.Context(), stop: stop}, newPartition("redisha", "default", 0, 1))
		rec := newRecorder(s)
		defer rec.stop()
		var batch []*verdict
		for _, id := range []string{"bad", "a", "b", "c"} {
			record := &result.Record{ID: id, State: result.Success, Attempt: 1}
			if id == "bad" {
				record.TTL = -1 // refused, and not for good
			}
			batch = append(batch, &verdict{task: &task{s: s}, kind: ackVerdict, id: id, record: record})
		}
		rec.failing = true
		ready := rec.take(batch)
		for tries := 0; len(ready) < 3; tries++ {
			require.Less(t, tries, 5)
			select {
			case o := <-rec.done:
				ready = append(ready, rec.landed(o)...)
			case <-rec.rest.C:
				rec.rested()
			}
		}
		rest, unrecorded := rec.end()
		require.Empty(t, rest)
		require.Equal(t, 1, unrecorded)
	})
}

// The maintenance has other things to do than to wait for a server of results.
func TestDeadTasksWaitForAServerOfResultsThatHangsAndHoldNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *testserver.Server, c *Client, _ *logs) {
		backend := testserver.New(t)
		opt := backend.Options()
		opt.MaxRetries, opt.ContextTimeoutEnabled = -1, true
		rdb := redis.NewClient(opt)
		t.Cleanup(func() { _ = rdb.Close() })
		m, _ := newMaintenance(t, c)
		m.s.r.w.cfg.Results = newResults(t, rdb, result.Config{})
		m.s.r.w.cfg.Lease = 15 * time.Second
		dead := func(id string) *verdict {
			return &verdict{task: &task{s: m.s}, kind: deadVerdict, id: id, record: &result.Record{ID: id, State: result.Dead, Attempt: 1}}
		}
		backend.Hang(true)
		start := time.Now()
		for range 100 {
			require.False(t, m.recorded(dead("a")))
		}
		require.Less(t, time.Since(start), 1100*time.Millisecond)
		backend.Hang(false)
		for !m.recorded(dead("a")) {
			time.Sleep(10 * time.Millisecond)
			require.Less(t, time.Since(start), 4*time.Second)
		}
		r, err := m.s.r.w.cfg.Results.Get(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, result.Dead, r.State)
	})
}

// A primary of results dies for good; Sentinels need five seconds to say so.
func TestResultsFollowAFailover(t *testing.T) {
	deployment := redistest.NewSentinels(t, redistest.SentinelsConfig{DownAfter: 5 * time.Second})
	results := newResults(t, ownClient(t, deployment.URL(), nil), result.Config{})
	c, _ := newTestClient(t, redistest.New(t, redistest.Config{}).Client(t), Config{})
	task := NewResultTask[int, int]("with", TaskConfig{})
	startWorker(t, c, WorkerConfig{Results: results, Lease: 15 * time.Second}, func(w *Worker) {
		task.Handle(w, func(_ context.Context, n int) (int, error) { return n, nil })
	})
	_, err := task.Wait(t.Context(), results, publish(t, &task.Task, c, 0))
	require.NoError(t, err)
	deployment.Primary().Kill()
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ids := make([]string, 20)
	for i := range ids {
		ids[i] = publish(t, &task.Task, c, i)
	}
	rdb := ownClient(t, deployment.URL(), nil)
	for rdb.Set(ctx, "probe", 1, 0).Err() != nil {
		require.NoError(t, context.Cause(ctx))
	}
	back := time.Since(start)
	for i, id := range ids {
		got, err := task.Wait(ctx, results, id)
		require.NoError(t, err)
		require.Equal(t, i, got)
	}
	all := time.Since(start)
	t.Logf("a new primary after %s, all results after %s", back, all)
	require.Less(t, all-back, 10*time.Second, "it once took twelve seconds")
}
