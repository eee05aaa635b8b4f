package resolve

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/testserver"
)

// A nodes is a primary and replicas in memory whose replies to ROLE and HELLO a
// test sets.
type nodes struct {
	t     *testing.T
	net   *testserver.Net
	addrs []string
	node  []*node
	log   *logBook
}

type node struct {
	*testserver.Server
	role  atomic.Value // "master", "slave connected", "slave connect", or an error
	hello atomic.Value // a role in the reply to HELLO, or an error
}

func newNodes(t *testing.T, roles ...string) *nodes {
	n := &nodes{t: t, net: testserver.NewNet(), log: &logBook{}}
	for i, role := range roles {
		nd := &node{Server: testserver.New(t)}
		nd.role.Store(role)
		nd.hello.Store("-NOPERM")
		nd.SetPreHook(nd.hook)
		addr := []string{"10.0.0.1:6379", "10.0.0.2:6379", "10.0.0.3:6379"}[i]
		n.net.Add(addr, nd.Dial)
		n.addrs, n.node = append(n.addrs, addr), append(n.node, nd)
	}
	return n
}

func (n *node) hook(c *server.Peer, cmd string, args ...string) bool {
	switch cmd {
	case "ROLE":
		writeRole(c, n.role.Load().(string))
		return true
	case "HELLO":
		if role := n.hello.Load().(string); role[0] == '-' {
			c.WriteError(role[1:])
		} else {
			c.WriteStrings([]string{"server", "redis", "role", role, "modules", ""})
		}
		return true
	}
	return false
}

func writeRole(c *server.Peer, role string) {
	switch {
	case role[0] == '-':
		c.WriteError(role[1:])
	case role == "master":
		c.WriteLen(3)
		c.WriteBulk("master")
		c.WriteInt(0)
		c.WriteLen(0)
	case role == "sentinel":
		c.WriteLen(2)
		c.WriteBulk("sentinel")
		c.WriteLen(0)
	case role == "nonsense":
		c.WriteInt(1)
	case role == "empty":
		c.WriteLen(0)
	default:
		c.WriteLen(5)
		c.WriteBulk("slave")
		c.WriteBulk("10.0.0.1")
		c.WriteInt(6379)
		c.WriteBulk(role[len("slave "):])
		c.WriteInt(0)
	}
}

func (n *nodes) open() Resolver {
	n.t.Helper()
	r, err := NewReplicated(ReplicatedConfig{Addrs: n.addrs, Dial: n.net.Dial, Name: "redisha:test", Logger: n.log.logger()})
	require.NoError(n.t, err)
	n.t.Cleanup(func() { require.NoError(n.t, r.Close()) })
	return r
}

func TestThePrimaryOfAListIsFoundByRole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, "slave connected", "master", "slave sync")
		r := n.open()
		require.LessOrEqual(t, await(t, r, time.Second, at(primaryB)), 10*time.Millisecond)
		require.NoError(t, r.Err())
		require.Equal(t, State{Primary: primaryB, Epoch: 1, Replicas: []string{"10.0.0.1:6379", "10.0.0.3:6379"}}, *r.State())

		n.node[2].role.Store("slave connect")
		time.Sleep(1300 * time.Millisecond)
		require.Equal(t, []string{"10.0.0.1:6379"}, r.State().Replicas)
		require.EqualValues(t, 1, r.State().Epoch)
	})
}

func TestTheConfiguredPrimaryIsTakenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, "master", "slave connected")
		n.net.Add(n.addrs[1], testserver.BlackHole)
		require.LessOrEqual(t, await(t, n.open(), time.Second, at(primaryA)), 10*time.Millisecond)
	})
}

func TestASilentServerDelaysTheListLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, "slave connected", "master")
		n.net.Add(n.addrs[0], testserver.BlackHole)
		require.LessOrEqual(t, await(t, n.open(), time.Second, at(primaryB)), 310*time.Millisecond)
	})
}

func TestAServerThatIsSlowToFailDelaysTheListLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, "slave connected", "master")
		n.net.Add(n.addrs[0], func(context.Context, string, string) (net.Conn, error) {
			time.Sleep(200 * time.Millisecond) // and 300 more until it is given up
			near, far := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, far) }()
			return near, nil
		})
		require.LessOrEqual(t, await(t, n.open(), time.Second, at(primaryB)), 310*time.Millisecond)
	})
}

func TestRolesThatAreForbiddenLaterChangeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, "slave connected", "master")
		r := n.open()
		await(t, r, time.Second, at(primaryB))
		for _, nd := range n.node {
			nd.role.Store("-NOPERM no")
		}
		time.Sleep(10 * time.Second)
		require.Equal(t, primaryB, r.State().Primary)
	})
}

func TestANewPrimaryOfAListIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, "master", "slave connected")
		r := n.open()
		await(t, r, time.Second, at(primaryA))
		n.node[0].Stop()
		time.Sleep(3 * time.Second)
		require.Equal(t, primaryA, r.State().Primary, "the last known one stays")
		n.node[1].role.Store("master")
		r.Refresh()
		require.LessOrEqual(t, await(t, r, 2*time.Second, at(primaryB)), 50*time.Millisecond)
		require.EqualValues(t, 2, r.State().Epoch)
		require.EqualValues(t, 1, r.Stats().Switches)
		require.Equal(t, 1, n.log.count("failover: new primary"))
	})
}

func TestOfTwoPrimariesTheCurrentOneIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, "slave connected", "master")
		r := n.open()
		await(t, r, time.Second, at(primaryB))
		n.node[0].role.Store("master") // the one that was configured
		time.Sleep(time.Minute)
		require.Equal(t, primaryB, r.State().Primary)
		require.EqualValues(t, 1, r.Stats().TwoPrimaries)
		require.Equal(t, 1, n.log.count("level=ERROR"))
		n.node[0].role.Store("slave connected")
		time.Sleep(2 * time.Second)
		n.node[0].role.Store("master")
		time.Sleep(2 * time.Second)
		require.EqualValues(t, 2, r.Stats().TwoPrimaries)
	})
}

func TestOfTwoPrimariesAtTheStartTheConfiguredOneIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, "slave connected", "master", "master")
		r := n.open()
		await(t, r, time.Second, at(primaryB))
		synctest.Wait()
		require.EqualValues(t, 1, r.Stats().TwoPrimaries)
	})
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, "master", "master")
		r := n.open()
		await(t, r, time.Second, func(s *State) bool { return s.Epoch > 0 })
		require.Equal(t, primaryA, r.State().Primary)
	})
}

func TestNoPrimarySaysWhatEachServerSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, "slave connected", "sentinel", "-LOADING Redis is loading the dataset in memory")
		r := n.open()
		time.Sleep(2 * time.Second)
		require.Empty(t, r.State().Primary)
		require.ErrorIs(t, r.Err(), ErrNoPrimary)
		require.ErrorContains(t, r.Err(), "10.0.0.1:6379: it says that it is a replica; 10.0.0.2:6379: it is a Sentinel, not a data node")
		require.ErrorContains(t, r.Err(), "10.0.0.3:6379: LOADING")
		require.Equal(t, []string{"10.0.0.1:6379"}, r.State().Replicas)
		n.node[0].role.Store("nonsense")
		n.node[1].role.Store("empty")
		n.node[2].role.Store("-NOPERM no")
		time.Sleep(2 * time.Second)
		require.ErrorContains(t, r.Err(), "10.0.0.1:6379: not a Redis reply to ROLE")
		require.ErrorContains(t, r.Err(), "10.0.0.2:6379: not a Redis reply to ROLE")
		require.ErrorContains(t, r.Err(), "10.0.0.3:6379: it tells no role")
	})
}

func TestWhereRoleIsForbiddenHelloTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, "-NOPERM no", "-NOPERM no", "-ERR unknown command 'ROLE'")
		n.node[0].hello.Store("replica")
		n.node[1].hello.Store("master")
		n.node[2].hello.Store("slave")
		r := n.open()
		await(t, r, time.Second, at(primaryB))
		require.Equal(t, []string{"10.0.0.1:6379", "10.0.0.3:6379"}, r.State().Replicas)
	})
}

func TestWhereNoRoleIsToldTheFirstIsThePrimary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, "-NOPERM no", "-NOPERM no")
		n.node[1].Stop()
		r := n.open()
		await(t, r, time.Second, at(primaryA))
		require.Empty(t, r.State().Replicas)
	})
}

func TestLosingAllServersIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, "master", "slave connected")
		r := n.open()
		await(t, r, time.Second, at(primaryA))
		time.Sleep(time.Second)
		for _, nd := range n.node {
			nd.Stop()
		}
		time.Sleep(time.Minute)
		require.Equal(t, 1, n.log.count("neither primary nor replica answers"))
		require.Zero(t, r.Stats().Reachable)
		require.Empty(t, r.State().Replicas)
		for _, nd := range n.node {
			require.NoError(t, nd.Restart())
		}
		time.Sleep(2 * time.Second)
		require.Equal(t, 1, n.log.count("servers answer again"))
		require.Equal(t, State{Primary: primaryA, Epoch: 1, Replicas: []string{primaryB}}, *r.State())
	})
}

func TestAListMayNameAServerTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, "master")
		n.addrs = append(n.addrs, n.addrs[0])
		r := n.open()
		await(t, r, time.Second, at(primaryA))
		require.Equal(t, 1, r.Stats().Known)
		require.Zero(t, r.Stats().TwoPrimaries)
	})
}
