package testserver

import (
	"context"
	"net"
	"os"
	"sync"
	"syscall"
)

// A Net reaches several servers in memory by their addresses, so that one
// dialer leads to all of them. Use IP literals as addresses. It is safe for
// concurrent use.
type Net struct {
	mu    sync.Mutex
	hosts map[string]DialFunc
}

// A DialFunc connects to a server, as [Server.Dial] and [Sentinel.Dial] do.
type DialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// NewNet returns a Net without servers.
func NewNet() *Net { return &Net{hosts: make(map[string]DialFunc)} }

// Add lets address ("10.0.0.1:6379") lead to dial; nil removes the address.
func (n *Net) Add(address string, dial DialFunc) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if dial == nil {
		delete(n.hosts, address)
		return
	}
	n.hosts[address] = dial
}

// Dial connects to the server at address; where there is none, the connection
// is refused.
func (n *Net) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	n.mu.Lock()
	dial := n.hosts[address]
	n.mu.Unlock()
	if dial == nil {
		return nil, refused(network, address)
	}
	return dial(ctx, network, address)
}

// BlackHole is a [DialFunc] that never connects, as for a host that is gone
// from the network: it waits until ctx is done.
func BlackHole(ctx context.Context, network, address string) (net.Conn, error) {
	<-ctx.Done()
	return nil, &net.OpError{Op: "dial", Net: network, Addr: dialed{network, address}, Err: os.ErrDeadlineExceeded}
}

func refused(network, address string) error {
	return &net.OpError{Op: "dial", Net: network, Addr: dialed{network, address}, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
}

// dialed is an address that was asked for.
type dialed struct{ network, address string }

func (d dialed) Network() string { return d.network }
func (d dialed) String() string  { return d.address }
