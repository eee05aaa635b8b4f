package conn

import (
	"context"
	"sync/atomic"
)

// A Route tells whether commands were answered by the node of a Cluster that was
// meant, or went elsewhere on the way: MOVED, ASK, or a repetition after the
// topology has changed. It is told by clients of Cluster that redisha made.
type Route struct {
	addr    string
	strayed atomic.Bool
}

// Begin makes addr the node that is meant: the Addr of its client's Options.
func (r *Route) Begin(addr string) {
	r.addr = addr
	r.strayed.Store(false)
}

// Node returns the address of the node that has answered everything, or "" if
// another one was asked.
func (r *Route) Node() string {
	if r.strayed.Load() {
		return ""
	}
	return r.addr
}

// RouteKey is the key under which a context has its *Route.
type RouteKey struct{}

// asked notes that the node at addr is asked.
func asked(ctx context.Context, addr string) {
	if r, _ := ctx.Value(RouteKey{}).(*Route); r != nil && r.addr != addr {
		r.strayed.Store(true)
	}
}
