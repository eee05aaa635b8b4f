package testserver

import (
	"bytes"
	"net"
	"sync"
	"time"
)

// serve takes a connection, unless the server is stopped or closed.
func (s *Server) serve(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.down {
		return false
	}
	c := &servedConn{Conn: conn, server: s, done: make(chan struct{}), ended: make(chan struct{})}
	s.conns[c] = struct{}{}
	s.front.ServeConn(c)
	return true
}

// A servedConn tells the server when its client has gone: miniredis notices
// that only between two commands, and a blocked one would stay for ever. And it
// delays what is written.
type servedConn struct {
	net.Conn
	server   *Server
	lost     sync.Once
	finished sync.Once
	done     chan struct{} // closed when miniredis is through with it
	ending   sync.Once
	ended    chan struct{} // closed when it is cut, or done

	mu      sync.Mutex
	late    []lateReply // to be written, in order
	writing bool        // there is a goroutine that does so
}

// A lateReply is to be written at its time.
type lateReply struct {
	due  time.Time
	data []byte
}

func (c *servedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.lost.Do(func() { c.server.watchLost(c) })
	}
	return n, err
}

// Write writes p, or has it written after the server's latency.
func (c *servedConn) Write(p []byte) (int, error) {
	delay := c.server.latency()
	c.mu.Lock()
	if delay <= 0 && len(c.late) == 0 {
		c.mu.Unlock()
		return c.Conn.Write(p)
	}
	defer c.mu.Unlock()
	select {
	case <-c.ended:
		return 0, net.ErrClosed
	default:
	}
	c.late = append(c.late, lateReply{time.Now().Add(delay), bytes.Clone(p)})
	if !c.writing {
		c.writing = true
		c.server.running.Go(c.writeLate)
	}
	return len(p), nil
}

// writeLate writes what is late until nothing is, or the connection has ended.
func (c *servedConn) writeLate() {
	for {
		c.mu.Lock()
		if len(c.late) == 0 {
			c.writing = false
			c.mu.Unlock()
			return
		}
		next := c.late[0]
		c.mu.Unlock()
		if wait := time.Until(next.due); wait > 0 { // no timer that is due at once: the race detector does not survive those of a bubble
			timer := time.NewTimer(wait)
			select {
			case <-timer.C:
			case <-c.ended:
				timer.Stop()
				return
			}
		}
		_, _ = c.Conn.Write(next.data)
		c.mu.Lock()
		c.late = c.late[1:]
		c.mu.Unlock()
	}
}

// cut closes the connection. Replies that are late are lost.
func (c *servedConn) cut() {
	c.ending.Do(func() { close(c.ended) })
	_ = c.Conn.Close()
}

func (c *servedConn) Close() error {
	c.finished.Do(func() { close(c.done) })
	s := c.server
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	c.cut()
	return nil
}

// CurrentConnectionCount counts the open connections.
func (s *Server) CurrentConnectionCount() int { return s.front.ClientsLen() }

// TotalConnectionCount counts the connections since the start.
func (s *Server) TotalConnectionCount() int { return s.front.TotalConnections() }
