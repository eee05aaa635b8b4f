package lock

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

func TestAQuorumTellsWhoHoldsALock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 5, 30*time.Second)
		c, d := p.open(t, Config{Holder: "billing"}), p.open(t, Config{Holder: "admin"})
		info, err := d.Inspect(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, Info{Key: "k", State: Free}, info)

		for i, srv := range p.servers { // so that all draw tokens of their own
			require.NoError(t, srv.Set("redisha:lock:{k}:f", fmt.Sprint(time.Now().Add(time.Duration(i)*time.Minute).UnixMicro())))
		}
		l := acquire(t, c, "k")
		synctest.Wait()
		for _, bad := range [][]int{nil, {0, 1}, {3, 4}, {1, 2}} {
			p.each(bad, func(s *testserver.Server) { s.Hang(true) })
			info, err = d.Inspect(t.Context(), "k")
			require.NoError(t, err)
			require.Equal(t, Held, info.State)
			require.Equal(t, "billing", info.Holder)
			require.Equal(t, l.Token(), info.Token)
			require.Greater(t, info.TTL, 19*time.Second)
			p.each(bad, func(s *testserver.Server) { s.Hang(false) })
		}
		p.each([]int{0, 1, 2}, func(s *testserver.Server) { s.Hang(true) })
		_, err = d.Inspect(t.Context(), "k")
		require.ErrorContains(t, err, `lock: inspect "k": no majority: 3 of 5 nodes`)
		p.each([]int{0, 1, 2}, func(s *testserver.Server) { s.Hang(false) })

		require.NoError(t, l.Release(t.Context()))
		info, err = d.Inspect(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, Free, info.State)
		require.GreaterOrEqual(t, info.Token, l.Token())
		p.quiet(t, c, d)
	})
}

func TestAQuorumRevokesALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 5, 30*time.Second)
		c, d := p.open(t, Config{}), p.open(t, Config{Holder: "admin"})
		l := acquire(t, c, "k")
		synctest.Wait()
		p.servers[4].Stop()
		revoked, err := d.Revoke(t.Context(), "k", l.Token()+1)
		require.NoError(t, err)
		require.False(t, revoked)
		revoked, err = d.Revoke(t.Context(), "k", l.Token())
		require.NoError(t, err)
		require.True(t, revoked)
		info, err := d.Inspect(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, Revoked, info.State)
		require.Equal(t, "admin", info.Holder)
		within(t, l.Context(), 11*time.Second, ErrLost)
		require.NoError(t, p.servers[4].Restart())
		_, err = d.TryAcquire(t.Context(), "k")
		require.ErrorIs(t, err, ErrNotAcquired, "until its TTL")
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
		time.Sleep(31 * time.Second)
		require.NoError(t, acquire(t, d, "k").Release(t.Context()))
		revoked, err = d.Revoke(t.Context(), "k", l.Token())
		require.NoError(t, err)
		require.False(t, revoked)
		p.quiet(t, c, d)
	})
}

// What was lost on the way to the nodes is not "another has it": the lease may be
// revoked, or not.
func TestARevocationWhoseOutcomeIsUnknownIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c, d := p.open(t, Config{}), p.open(t, Config{})
		l := acquire(t, c, "k")
		_, err := d.Inspect(t.Context(), "k")
		require.NoError(t, err)
		synctest.Wait()
		cut := func(servers ...int) {
			for _, srv := range p.servers {
				srv.SetPreHook(nil)
			}
			for _, i := range servers {
				looked := false
				p.servers[i].SetPreHook(func(peer *server.Peer, cmd string, _ ...string) bool {
					if cmd == "EVALSHA" && looked {
						peer.Close()
						return true
					}
					looked = looked || cmd == "EVALSHA"
					return false
				})
			}
		}
		cut(0, 1, 2)
		revoked, err := d.Revoke(t.Context(), "k", l.Token())
		require.ErrorContains(t, err, "revoked on 0 of 3 nodes, want 2: try again: no majority: 3 of 3 nodes")
		require.False(t, revoked)
		cut(0, 1)
		revoked, err = d.Revoke(t.Context(), "k", l.Token())
		require.ErrorContains(t, err, "revoked on 1 of 3 nodes, want 2: try again: no majority: 2 of 3 nodes")
		require.False(t, revoked)
		cut(0)
		revoked, err = d.Revoke(t.Context(), "k", l.Token())
		require.NoError(t, err)
		require.True(t, revoked, "one by one")
		cut()
		revoked, err = d.Revoke(t.Context(), "k", l.Token())
		require.NoError(t, err)
		require.False(t, revoked, "it was before")
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
	})
}
