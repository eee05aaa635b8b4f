package lock

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

// beside returns a panel of the same servers, behind networks of their own.
func (p *panel) beside() *panel {
	other := &panel{servers: p.servers}
	for _, srv := range p.servers {
		other.networks = append(other.networks, &network{dial: srv.Dial, replies: -1})
	}
	return other
}

// unequal lets the servers draw tokens of their own, so that it takes a second
// round to agree.
func (p *panel) unequal(t *testing.T, key string) {
	t.Helper()
	for i, srv := range p.servers {
		require.NoError(t, srv.Set(leaseName(key)+":f", fmt.Sprint(time.Now().Add(time.Duration(i+1)*time.Minute).UnixMicro())))
	}
}

// An acquisition is given up at each of its steps: others get the lock long before
// a TTL, and nothing stays.
func TestAQuorumsAcquisitionMayBeCancelledAtAnyStep(t *testing.T) {
	for _, warm := range []bool{false, true} {
		t.Run(fmt.Sprint("warm ", warm), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPanel(t, 3, 30*time.Second)
				d := p.beside().open(t, Config{})
				require.NoError(t, acquire(t, d, "k").Release(t.Context()))
				for _, srv := range p.servers {
					srv.SetLatency(time.Millisecond)
				}
				var c *Client
				begin := func() {
					if c == nil || !warm {
						c = p.open(t, Config{})
						p.each([]int{0, 1, 2}, (*testserver.Server).CutConnections)
						reconnect(t, d)
					}
					if warm {
						require.NoError(t, acquire(t, c, "k").Release(t.Context()))
						time.Sleep(time.Second)
					}
				}
				cancelled := 0
				for after := time.Duration(0); ; after += 250 * time.Microsecond {
					begin()
					p.unequal(t, "k")
					ctx, cancel := context.WithCancel(t.Context())
					timer := time.AfterFunc(after+time.Microsecond, cancel)
					l, err := c.Acquire(ctx, "k")
					if err != nil {
						require.ErrorIs(t, err, context.Canceled)
						cancelled++
					}
					stopped := timer.Stop()
					if err == nil && !stopped {
						cancel()
						require.NoError(t, l.Release(ctx))
					} else if err == nil {
						require.NoError(t, l.Release(t.Context()))
					}
					m, err := d.Acquire(t.Context(), "k", MaxWait(3*time.Second))
					require.NoError(t, err, "cancelled after %s", after)
					if l != nil {
						require.Greater(t, m.Token(), l.Token())
					}
					require.NoError(t, m.Release(t.Context()))
					p.quiet(t, c, d)
					if stopped {
						break
					}
				}
				t.Logf("cancelled %d times", cancelled)
				require.GreaterOrEqual(t, cancelled, 4, "two rounds, at least")
			})
		})
	}
}

// What a minority of the nodes answers is lost, at any step, and nobody notices. Of
// a majority, the caller hears that it is not there, and nothing stays.
func TestAQuorumsRepliesMayBeLostAtAnyStep(t *testing.T) {
	for _, victims := range [][]int{{0}, {2}, {0, 1}, {0, 1, 2}} {
		for _, step := range []string{"acquire", "renew", "release"} {
			t.Run(fmt.Sprint(step, victims), func(t *testing.T) {
				most := 12 // replies, of which the handshakes have most
				if testing.Short() {
					most = 3
				}
				for passing := range most {
					synctest.Test(t, func(t *testing.T) { losesReplies(t, step, victims, passing) })
				}
			})
		}
	}
}

func losesReplies(t *testing.T, step string, victims []int, passing int) {
	p := newPanel(t, 3, 30*time.Second)
	c, d := p.open(t, Config{}), p.beside().open(t, Config{})
	require.NoError(t, acquire(t, d, "k").Release(t.Context()))
	synctest.Wait()
	p.unequal(t, "k")
	cut := func(when string, do func()) {
		if when != step {
			do()
			return
		}
		for _, i := range victims {
			p.networks[i].cutAfter(passing)
		}
		do()
		for _, n := range p.networks {
			n.cutAfter(-1)
		}
	}
	minority := len(victims) == 1
	var l *Lease
	var err error
	cut("acquire", func() { l, err = c.TryAcquire(t.Context(), "k") })
	if minority || step != "acquire" {
		require.NoError(t, err)
	} else if err != nil {
		require.ErrorContains(t, err, "no majority")
		require.NotErrorIs(t, err, ErrNotAcquired)
	}
	if err == nil {
		token := l.Token()
		cut("renew", func() { time.Sleep(15 * time.Second) })
		time.Sleep(30 * time.Second)
		require.NoError(t, l.Context().Err(), "it was renewed in time")
		require.Equal(t, 3, p.has("k"), "healed")
		cut("release", func() { err = l.Release(t.Context()) })
		if minority || step != "release" {
			require.NoError(t, err)
		} else if err != nil {
			require.ErrorContains(t, err, "no majority")
			require.NoError(t, l.Release(t.Context()), "it may be tried again")
		}
		m, err := d.Acquire(t.Context(), "k", MaxWait(3*time.Second))
		require.NoError(t, err)
		require.Greater(t, m.Token(), token)
		require.NoError(t, m.Release(t.Context()))
	} else {
		m, err := d.Acquire(t.Context(), "k", MaxWait(3*time.Second))
		require.NoError(t, err)
		require.NoError(t, m.Release(t.Context()))
	}
	p.quiet(t, c, d)
}
