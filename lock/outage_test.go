package lock

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/testserver"
)

type outage struct{ begin, end func(srv *testserver.Server) }

// outages are what a server may do to who waits.
var outages = map[string]outage{
	"it hangs":           {func(s *testserver.Server) { s.Hang(true) }, func(s *testserver.Server) { s.Hang(false) }},
	"it loads":           {func(s *testserver.Server) { s.SetLoading(time.Hour) }, func(s *testserver.Server) { s.SetLoading(0) }},
	"it is busy":         refusing("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE."),
	"a slot moves":       refusing("TRYAGAIN Multiple keys request during rehashing of slot"),
	"it has no replicas": refusing("NOREPLICAS Not enough good replicas to write."),
	"it is gone":         {func(s *testserver.Server) { s.Stop() }, func(s *testserver.Server) { _ = s.Restart() }},
	"it answers nothing": {func(s *testserver.Server) { s.CutReplies(1<<30, "EVALSHA", "EVAL") }, func(s *testserver.Server) { s.CutReplies(0, "EVALSHA", "EVAL") }},
}

// refusing is an outage in which a server answers scripts by an error that passes.
func refusing(reply string) (o outage) {
	o.begin = func(s *testserver.Server) { s.SetError(reply, "EVALSHA", "EVAL") }
	o.end = func(s *testserver.Server) { s.SetError("", "EVALSHA", "EVAL") }
	return o
}

func TestAWaitOutlivesAnOutage(t *testing.T) {
	for name, outage := range outages {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := testserver.New(t)
				holder := open(t, ownClient(t, srv), Config{TTL: 20 * time.Second, CloseTimeout: time.Minute})
				c := open(t, ownClient(t, srv), Config{TTL: 20 * time.Second, CloseTimeout: time.Minute})
				first, err := holder.TryAcquire(t.Context(), "k")
				require.NoError(t, err)
				var wg sync.WaitGroup
				for range 5 {
					wg.Go(func() {
						l, err := c.Acquire(t.Context(), "k")
						if err != nil {
							t.Error(err)
							return
						}
						if err := l.Release(t.Context()); err != nil && !errors.Is(err, conn.ErrOutcomeUnknown) { // a message may bring the lease in the outage, too
							t.Error(err)
						}
					})
				}
				time.Sleep(time.Second)
				synctest.Wait()
				outage.begin(srv)
				c.line.rouse() // as on any news of the endpoint: attempts are made while the server is away
				time.Sleep(25 * time.Second)
				outage.end(srv)
				_ = first.Release(t.Context())
				wg.Wait()
				require.Empty(t, c.renewer.leases())
				time.Sleep(time.Minute)
				requireNoQueue(t, srv)
				require.Empty(t, c.line.waiters)
				require.EqualValues(t, 5, total(c).Acquired)
			})
		})
	}
}

func TestAWaitEndsWithItsContextOrAMinuteOfAnOutage(t *testing.T) {
	for name, outage := range outages {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := testserver.New(t)
				holder := open(t, ownClient(t, srv), Config{TTL: time.Hour, CloseTimeout: time.Minute})
				c := open(t, ownClient(t, srv), Config{CloseTimeout: time.Minute})
				_, err := holder.TryAcquire(t.Context(), "k")
				require.NoError(t, err)
				start := time.Now()
				ctx, cancel := context.WithTimeoutCause(t.Context(), 30*time.Second, errTest)
				defer cancel()
				var wg sync.WaitGroup
				wg.Go(func() {
					_, err := c.Acquire(ctx, "k")
					if !errors.Is(err, errTest) || time.Since(start) > 31*time.Second {
						t.Error(time.Since(start), err)
					}
				})
				wg.Go(func() {
					_, err := c.Acquire(t.Context(), "k")
					if err == nil || errors.Is(err, ErrNotAcquired) || time.Since(start) > 2*time.Minute {
						t.Error(time.Since(start), err)
					}
				})
				time.Sleep(time.Second)
				synctest.Wait()
				outage.begin(srv)
				c.line.rouse()
				wg.Wait()
				_, err = c.Acquire(t.Context(), "k")
				require.Error(t, err, "who comes in an outage is told")
				outage.end(srv)
				time.Sleep(2 * time.Minute)
			})
		})
	}
}

// However long somebody has waited, an outage does not end the wait; nor does a second.
func TestALongWaitOutlivesOutagesToo(t *testing.T) {
	for name, outage := range outages {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := testserver.New(t)
				holder := open(t, ownClient(t, srv), Config{TTL: time.Hour})
				c := open(t, ownClient(t, srv), Config{TTL: 20 * time.Second})
				first := acquire(t, holder, "k")
				done := make(chan struct{})
				go func() {
					defer close(done)
					l, err := c.Acquire(t.Context(), "k")
					if err != nil {
						t.Error(err)
						return
					}
					_ = l.Release(t.Context())
				}()
				for range 3 {
					time.Sleep(2 * time.Minute)
					outage.begin(srv)
					c.line.rouse()
					time.Sleep(5 * time.Second)
					outage.end(srv)
				}
				time.Sleep(5 * time.Second)
				_ = first.Release(t.Context())
				<-done
				time.Sleep(time.Minute)
			})
		})
	}
}

// A reply that says to come back later leaves the attempt's token used up, since what
// it may have left is deleted, once more a second later: by then the lease may be there.
func TestALeaseThatFollowsAnOutageIsNotSweptAway(t *testing.T) {
	for name, outage := range outages {
		t.Run(name, func(t *testing.T) {
			for after := 10 * time.Millisecond; after < 1500*time.Millisecond; after += 170 * time.Millisecond {
				synctest.Test(t, func(t *testing.T) {
					srv := testserver.New(t)
					holder := open(t, ownClient(t, srv), Config{TTL: time.Hour, CloseTimeout: time.Minute})
					c := open(t, ownClient(t, srv), Config{TTL: time.Minute, CloseTimeout: time.Minute})
					first := acquire(t, holder, "k")
					got := make(chan *Lease, 1)
					go func() {
						l, err := c.Acquire(t.Context(), "k")
						if err != nil {
							t.Error(err)
						}
						got <- l
					}()
					time.Sleep(time.Second)
					synctest.Wait()
					outage.begin(srv)
					c.line.rouse()
					time.Sleep(after)
					outage.end(srv)
					require.NoError(t, first.Release(t.Context()))
					l := <-got
					time.Sleep(10 * time.Second)
					require.True(t, srv.Exists(leaseK), after)
					require.NoError(t, l.Context().Err(), after)
					_ = l.Release(t.Context())
				})
			}
		})
	}
}
