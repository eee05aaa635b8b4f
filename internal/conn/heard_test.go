package conn

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// go-redis looks whether a peer has hung up, but not right after it was heard.
func TestAPeerThatWasJustHeardIsNotLookedAt(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	nc, err := net.Dial("tcp", listener.Addr().String())
	require.NoError(t, err)
	peer, err := listener.Accept()
	require.NoError(t, err)
	r := newRegistry(0, 0)
	added, err := r.add(nc, "addr", 0)
	require.NoError(t, err)
	defer added.Close()
	tc := added.(*tracked)

	looked := func() bool {
		raw, err := tc.SyscallConn()
		require.NoError(t, err)
		return raw != opaque{}
	}
	require.True(t, looked(), "nothing was heard yet")
	heard := func() {
		_, err := peer.Write([]byte("+PONG\r\n"))
		require.NoError(t, err)
		_, err = tc.Read(make([]byte, 64))
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool {
		heard()
		return !looked() // a thread may be stopped for longer in between
	}, 10*time.Second, time.Millisecond)
	time.Sleep(2 * justHeard)
	require.True(t, looked())

	heard()
	r.retireIdle(0)
	_, err = tc.SyscallConn()
	require.ErrorIs(t, err, errRetired, "however new the connection's last reply is")
	require.NoError(t, peer.Close())
}
