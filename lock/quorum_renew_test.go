package lock

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/stretchr/testify/require"
)

func TestALeaseIsLostWithTheNextRenewalWhenAMajorityHasLostIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 5, 30*time.Second)
		c := p.open(t, Config{TTL: 30 * time.Second})
		l := acquire(t, c, "k")
		synctest.Wait()
		for _, i := range []int{0, 1} {
			p.servers[i].FlushAll()
		}
		time.Sleep(11 * time.Second)
		require.Equal(t, 5, p.has("k"), "healed with the first renewal")
		for _, i := range []int{2, 3} {
			p.servers[i].FlushAll()
		}
		time.Sleep(10 * time.Second)
		require.NoError(t, l.Context().Err(), "0 and 1 count again")
		require.Equal(t, 5, p.has("k"))
		time.Sleep(10 * time.Second)
		for _, i := range []int{0, 2, 4} {
			p.servers[i].FlushAll()
		}
		within(t, l.Context(), 10*time.Second, ErrLost)
		require.ErrorContains(t, context.Cause(l.Context()), "its key was deleted")
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
		p.quiet(t, c)
	})
}

// Between the last renewal and the healing of one node, another forgets the lease,
// and somebody else has had it meanwhile: a majority shows the lease again, and
// yet it is not to be counted on.
func TestANodeThatWasHealedDoesNotCountBeforeARenewalWithoutIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c := p.open(t, Config{})
		p.servers[2].Hang(true)
		l := acquire(t, c, "k")
		time.Sleep(time.Second)
		p.servers[2].Hang(false)
		time.Sleep(time.Second)
		p.servers[2].FlushAll() // what hung there has come late
		done := false
		p.servers[2].SetPreHook(func(_ *server.Peer, cmd string, _ ...string) bool {
			if cmd == "EVALSHA" && !done { // the healing
				done = true
				p.servers[1].Del("redisha:lock:{k}")
			}
			return false
		})
		within(t, l.Context(), 11*time.Second, ErrLost)
		require.True(t, done)
		require.Equal(t, 2, p.has("k"), "a majority, but one that was healed")
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
		p.quiet(t, c)
	})
}

func TestAHungNodeDoesNotHoldUpRenewals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 5, 3*time.Second)
		c := p.open(t, Config{TTL: 3 * time.Second})
		var leases []*Lease
		for i := range 30 {
			leases = append(leases, acquire(t, c, fmt.Sprint(i), TTL(time.Second)))
			time.Sleep(10 * time.Millisecond)
		}
		p.servers[0].Hang(true)
		p.servers[3].Hang(true)
		if testing.Short() {
			time.Sleep(10 * time.Second)
		} else {
			time.Sleep(time.Minute)
		}
		require.Zero(t, c.Stats().RenewFailed)
		for _, l := range leases {
			require.NoError(t, l.Context().Err())
			require.NoError(t, l.Release(t.Context()))
		}
		p.servers[0].Hang(false)
		p.servers[3].Hang(false)
		p.quiet(t, c)
	})
}

// Two nodes answer a renewal, and are one server: that is no majority.
func TestARenewalCountsEachServerOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c := p.open(t, Config{})
		l := acquire(t, c, "k")
		synctest.Wait()
		p.networks[2].dial = p.servers[0].Dial
		p.servers[1].Stop()
		p.servers[2].Stop()
		within(t, l.Context(), 30*time.Second, ErrLost)
		require.ErrorIs(t, l.Release(t.Context()), ErrLost)
		synctest.Wait()
		p.networks[2].dial = p.servers[2].Dial
		for _, i := range []int{1, 2} {
			require.NoError(t, p.servers[i].Restart())
		}
		p.servers[0].CutConnections()
		p.quiet(t, c)
	})
}

// It does not count yet, but it is there.
func TestWhatANodeWasGivenAgainIsReleasedToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 3, 30*time.Second)
		c := p.open(t, Config{})
		l := acquire(t, c, "k")
		synctest.Wait()
		p.servers[1].Del(leaseKeyOf("k"))
		p.servers[1].SetPreHook(func(peer *server.Peer, cmd string, args ...string) bool {
			if cmd != "EVALSHA" || args[0] == voteScript.whole.Load().hash || !p.servers[1].Exists(leaseKeyOf("k")) {
				return false
			}
			peer.WriteError("ERR no renewal") // once it was healed
			return true
		})
		time.Sleep(15 * time.Second)
		require.Equal(t, 3, p.has("k"), "healed")
		p.servers[1].SetPreHook(nil)
		require.NoError(t, l.Release(t.Context()))
		p.quiet(t, c)
	})
}
