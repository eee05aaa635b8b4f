package conn

import (
	"net"
	"syscall"
	"time"
)

// A stillborn is the connection that a failed dial gives to go-redis, whose
// handshake then fails with the dial's error. A pool of go-redis that has seen
// PoolSize failed dials, ever, dials no more for up to a second at a time; failed
// handshakes it does not count.
type stillborn struct{ err error }

// born returns nc, or a stillborn if the dial failed.
func born(nc net.Conn, err error) net.Conn {
	if err != nil {
		return stillborn{err}
	}
	return nc
}

func (s stillborn) Read([]byte) (int, error)         { return 0, s.err }
func (s stillborn) Write([]byte) (int, error)        { return 0, s.err }
func (s stillborn) Close() error                     { return nil }
func (s stillborn) LocalAddr() net.Addr              { return nowhere{} }
func (s stillborn) RemoteAddr() net.Addr             { return nowhere{} }
func (s stillborn) SetDeadline(time.Time) error      { return nil }
func (s stillborn) SetReadDeadline(time.Time) error  { return nil }
func (s stillborn) SetWriteDeadline(time.Time) error { return nil }

// SyscallConn fails, by which go-redis knows that the connection, kept for
// MinIdle, is of no use.
func (s stillborn) SyscallConn() (syscall.RawConn, error) { return nil, s.err }

type nowhere struct{}

func (nowhere) Network() string { return "tcp" }
func (nowhere) String() string  { return "nowhere" }
