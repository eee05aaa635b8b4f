package redistest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A Proxy forwards TCP connections to a server and does them harm on demand. It
// knows nothing of the protocol: a request is what one read from the client
// gave, a reply what one read from the server gave. Up to 64 KiB that two sides
// exchange in turns is one each, which holds for go-redis. Through TLS it sees
// nothing that a match could know.
//
// The methods are safe for concurrent use and act at once, on connections that
// exist as well.
type Proxy struct {
	listener net.Listener
	ctx      context.Context // done when the proxy is closed
	cancel   context.CancelFunc
	running  sync.WaitGroup

	mu          sync.Mutex
	target      string
	delay       time.Duration
	refuse      bool
	open        chan struct{} // closed while no black hole is on
	cutReplies  int
	cutRequests int
	match       func([]byte) bool
	matched     chan struct{}
	links       map[*link]struct{}
	closed      bool

	connections, requests, replies, requestBytes, replyBytes, cuts atomic.Int64
}

// ProxyStats are counts since the proxy's start.
type ProxyStats struct {
	Connections  int64 // accepted, refused ones too
	Open         int   // that clients hold now
	Requests     int64 // reads from clients
	Replies      int64 // reads from the server
	RequestBytes int64 // read from clients
	ReplyBytes   int64 // read from the server
	Cuts         int64 // connections that the proxy closed of its own accord
}

// StartProxy starts a proxy for target, host and port. It connects to the target
// when a client comes, so that may be down. Close ends it.
func StartProxy(target string) (*Proxy, error) {
	if _, _, err := net.SplitHostPort(target); err != nil {
		return nil, fmt.Errorf("redistest: start proxy: target is %q, want host:port: %w", target, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("redistest: start proxy: %w", err)
	}
	p := &Proxy{listener: l, target: target, open: make(chan struct{}), links: make(map[*link]struct{})}
	close(p.open)
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.running.Go(p.accept)
	return p, nil
}

// NewProxy is StartProxy for a test, at whose end it is closed.
func NewProxy(tb testing.TB, target string) *Proxy {
	tb.Helper()
	p, err := StartProxy(target)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := p.Close(); err != nil {
			tb.Error(err)
		}
	})
	return p
}

// Addr returns host and port for clients.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

func (p *Proxy) port() int { return p.listener.Addr().(*net.TCPAddr).Port }

// SetTarget leads new connections to another server. Cut moves the old ones.
func (p *Proxy) SetTarget(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = addr
}

// Delay holds all that is read from now on back for d, each way.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// CutReplies drops each of the next n replies and closes its connection: the
// server has done what it was told, the client does not learn it. What the
// server sends unasked is a reply too. CutReplies(0) ends it.
func (p *Proxy) CutReplies(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutReplies = n
}

// CutRequests drops each of the next n requests and closes its connection: the
// server never sees it. CutRequests(0) ends it.
func (p *Proxy) CutRequests(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutRequests = n
}

// CutAfter forwards the first request that matches, drops what the server sends
// on its connection from then on, and closes the connection when the server has
// sent something: the command was executed and its reply lost. Replies to
// earlier requests that are still under way are lost as well. The returned
// channel is closed when the connection is. Another call replaces the match; CutAfter(nil)
// ends it. Match is called for one request at a time, must not keep it, and must
// not call the proxy.
func (p *Proxy) CutAfter(match func(request []byte) bool) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.match, p.matched = match, make(chan struct{})
	return p.matched
}

// BlackHole holds everything back while it is on: connections are accepted and
// kept, and nothing is forwarded, not even their end. What was held back is
// forwarded when it goes off.
func (p *Proxy) BlackHole(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.open:
		if on {
			p.open = make(chan struct{})
		}
	default:
		if !on {
			close(p.open)
		}
	}
}

// Refuse closes new connections as soon as they are accepted, while it is on.
func (p *Proxy) Refuse(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = on
}

// Cut closes all connections now and returns their number.
func (p *Proxy) Cut() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.close()
	}
	n := len(p.links)
	clear(p.links)
	p.cuts.Add(int64(n))
	return n
}

// Stats returns the counts.
func (p *Proxy) Stats() ProxyStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	open := 0
	for l := range p.links {
		if !l.clientGone {
			open++
		}
	}
	return ProxyStats{
		Connections:  p.connections.Load(),
		Open:         open,
		Requests:     p.requests.Load(),
		Replies:      p.replies.Load(),
		RequestBytes: p.requestBytes.Load(),
		ReplyBytes:   p.replyBytes.Load(),
		Cuts:         p.cuts.Load(),
	}
}

// Close ends the proxy and its connections, and waits for its goroutines. It may
// be called twice.
func (p *Proxy) Close() error {
	p.mu.Lock()
	var err error
	if !p.closed {
		err = p.listener.Close()
	}
	p.closed = true
	p.cancel()
	for l := range p.links {
		l.close()
	}
	clear(p.links)
	p.mu.Unlock()
	p.running.Wait()
	if err != nil {
		return fmt.Errorf("redistest: close proxy: %w", err)
	}
	return nil
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			if p.ctx.Err() != nil {
				return
			}
			time.Sleep(5 * time.Millisecond) // no file descriptors left, for example
			continue
		}
		p.connections.Add(1)
		l := &link{proxy: p, client: client, done: make(chan struct{})}
		p.mu.Lock()
		if p.refuse || p.closed {
			p.mu.Unlock()
			_ = client.Close()
			continue
		}
		p.links[l] = struct{}{}
		p.running.Go(l.run)
		p.mu.Unlock()
	}
}

// dial connects to the target once there is no black hole.
func (p *Proxy) dial(l *link) (net.Conn, error) {
	if !l.passGate() {
		return nil, errors.New("the connection was closed")
	}
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(p.ctx, "tcp", target)
}

// A verdict says what becomes of something that was read.
type verdict int

const (
	forward verdict = iota
	cut             // drop it and close the connection
)

// judgeRequest says what becomes of a request.
func (p *Proxy) judgeRequest(l *link, request []byte) verdict {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cutRequests > 0 {
		p.cutRequests--
		return cut
	}
	if p.match != nil && p.match(request) {
		p.match = nil
		l.matched = p.matched
	}
	return forward
}

// judgeReply says what becomes of a reply.
func (p *Proxy) judgeReply(l *link) verdict {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.matched != nil {
		return cut
	}
	if p.cutReplies > 0 {
		p.cutReplies--
		return cut
	}
	return forward
}

// drop closes a link. It counts as a cut unless one of its sides has ended.
func (p *Proxy) drop(l *link, isCut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.links[l]; ok && isCut {
		p.cuts.Add(1)
	}
	delete(p.links, l)
	l.close()
	if l.matched != nil {
		close(l.matched)
		l.matched = nil
	}
}
