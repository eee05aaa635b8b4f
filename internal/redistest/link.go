package redistest

import (
	"net"
	"sync"
	"time"
)

// A link is one connection through a Proxy: from each side one goroutine reads
// into a queue, and another forwards what is due.
type link struct {
	proxy  *Proxy
	client net.Conn

	// Guarded by proxy.mu.
	matched    chan struct{} // of CutAfter, once a request has matched
	clientGone bool          // the client has ended the connection

	mu     sync.Mutex
	server net.Conn
	ended  bool
	done   chan struct{} // closed when the link is
}

// A chunk is what one read gave.
type chunk struct {
	data []byte
	due  time.Time // when to forward it
}

const (
	chunkBytes = 64 << 10
	queueSize  = 64 // chunks on their way, each direction
)

func (l *link) run() {
	requests, replies := make(chan chunk, queueSize), make(chan chunk, queueSize)
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { l.read(l.client, requests, true) })
	server, err := l.proxy.dial(l)
	if err != nil || !l.setServer(server) {
		l.proxy.drop(l, false)
		return
	}
	running.Go(func() { l.read(server, replies, false) })
	running.Go(func() { l.write(l.client, replies, false) })
	l.write(server, requests, true)
}

// setServer reports whether the link is still wanted, else it closes the conn.
func (l *link) setServer(conn net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		_ = conn.Close()
		return false
	}
	l.server = conn
	return true
}

// close ends the link; its goroutines end soon after.
func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	l.ended = true
	close(l.done)
	_ = l.client.Close()
	if l.server != nil {
		_ = l.server.Close()
	}
}

// read queues what comes from a side until that ends.
func (l *link) read(from net.Conn, queue chan<- chunk, fromClient bool) {
	defer close(queue)
	reads, bytes := &l.proxy.replies, &l.proxy.replyBytes
	if fromClient {
		reads, bytes = &l.proxy.requests, &l.proxy.requestBytes
	}
	buffer := make([]byte, chunkBytes)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			reads.Add(1)
			bytes.Add(int64(n))
			c := chunk{data: append([]byte(nil), buffer[:n]...)}
			if d := l.proxy.delayNow(); d > 0 {
				c.due = time.Now().Add(d)
			}
			select {
			case queue <- c:
			case <-l.done:
				return
			}
		}
		if err != nil {
			if fromClient {
				l.proxy.clientGone(l)
			}
			return
		}
	}
}

// write forwards a queue to the other side, and ends the link when the queue has
// ended.
func (l *link) write(to net.Conn, queue <-chan chunk, toServer bool) {
	isCut := false
	defer func() { l.proxy.drop(l, isCut) }()
	for c := range queue {
		if !l.wait(time.Until(c.due)) || !l.passGate() {
			return
		}
		if toServer {
			isCut = l.proxy.judgeRequest(l, c.data) == cut
		} else {
			isCut = l.proxy.judgeReply(l) == cut
		}
		if isCut {
			return
		}
		if _, err := to.Write(c.data); err != nil {
			return
		}
	}
	l.passGate() // a black hole hides the end too
}

// wait reports false if the link is closed meanwhile.
func (l *link) wait(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-l.done:
		return false
	}
}

// passGate waits while there is a black hole. It reports false if the link is
// closed meanwhile.
func (l *link) passGate() bool {
	for {
		open := l.proxy.gate()
		select {
		case <-open:
			return true
		default:
		}
		select {
		case <-open:
		case <-l.done:
			return false
		}
	}
}

func (p *Proxy) gate() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open
}

func (p *Proxy) clientGone(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l.clientGone = true
}

func (p *Proxy) delayNow() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.delay
}
