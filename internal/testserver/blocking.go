package testserver

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2/server"
)

// unblockReply says how CLIENT UNBLOCK ends a blocked command.
type unblockReply int

const (
	notUnblocked unblockReply = iota
	likeTimeout
	withError
)

const unblockedError = "UNBLOCKED client unblocked via CLIENT UNBLOCK"

// cmdBlocking runs a command of miniredis so that CLIENT UNBLOCK or the loss of
// the connection ends it.
func (s *Server) cmdBlocking(c *server.Peer, cl *client, args []string) bool {
	if cl.script { // miniredis would wait while it holds its lock
		c.WriteError(notFromScript)
		return true
	}
	reply := s.runOn(c, c.Resp3, func(inner *server.Peer) {
		s.block(c, cl, func() {
			inner.Close()
			s.wake()
		})
	}, args)
	verdict := s.unblock(cl)
	switch {
	case reply != "":
		c.WriteRaw(reply)
	case verdict == withError:
		c.WriteError(unblockedError)
	case verdict == likeTimeout && c.Resp3:
		c.WriteNull()
	case verdict == likeTimeout:
		c.WriteLen(-1)
	}
	return true // without a reply: the connection or the server is closed
}

func (s *Server) cmdXread(c *server.Peer, cl *client, args []string) bool {
	switch {
	case !blocks(args):
		return false
	case cl.script:
		c.WriteError(fmt.Sprintf("ERR %s command is not allowed with BLOCK option from scripts", args[0]))
		return true
	}
	return s.cmdBlocking(c, cl, args)
}

// blocks reports whether an XREAD or XREADGROUP has the option BLOCK.
func blocks(args []string) bool {
	return slices.ContainsFunc(beforeStreams(args), func(arg string) bool { return strings.EqualFold(arg, "BLOCK") })
}

func beforeStreams(args []string) []string {
	if i := slices.IndexFunc(args, func(arg string) bool { return strings.EqualFold(arg, "STREAMS") }); i >= 0 {
		return args[:i]
	}
	return args
}

// block notes that the connection of c waits and how to end that, and ends it at
// once if the connection has been lost before.
func (s *Server) block(c *server.Peer, cl *client, end func()) {
	s.mu.Lock()
	cl.waiting, cl.verdict = end, notUnblocked
	s.mu.Unlock()
	if c.Closed() {
		end()
	}
}

// unblock notes that cl waits no longer and returns what ended it.
func (s *Server) unblock(cl *client) unblockReply {
	s.mu.Lock()
	defer s.mu.Unlock()
	cl.waiting = nil
	return cl.verdict
}

// wake lets miniredis look at its blocked commands again. It has no call for
// that alone; emptying a database that nobody can select has no other effect.
func (s *Server) wake() { s.DB(-1).FlushDB() }

// watchLost ends what the client of conn is blocked in, if anything. Miniredis
// marks the connection's peer as closed shortly after the read that failed, and
// says nothing of it, so this looks, ever more seldom, until the peer is done: a
// hook may hold it for long, and a bubble's hours pass quickly.
func (s *Server) watchLost(conn *servedConn) {
	s.running.Go(func() {
		pause := time.Millisecond
		timer := time.NewTimer(pause)
		defer timer.Stop()
		for {
			s.mu.Lock()
			var ends []func()
			for peer, cl := range s.clients {
				if cl.waiting != nil && peer.Closed() {
					ends = append(ends, cl.waiting)
				}
			}
			s.mu.Unlock()
			for _, end := range ends {
				end()
			}
			select {
			case <-conn.done:
				return
			case <-timer.C:
				pause *= 2
				timer.Reset(pause)
			}
		}
	})
}

// cmdWait is WAIT: the replicas have everything at once, as many as there are.
//
// https://redis.io/commands/wait/
func (s *Server) cmdWait(c *server.Peer, cl *client, args []string) bool {
	if !s.admitted(c, cl, "WAIT") {
		return true
	}
	if len(args) != 3 {
		return false // miniredis says what is wrong
	}
	if s.role("replica") == "replica" {
		c.WriteError("ERR WAIT cannot be used with replica instances. Please also note that since Redis 4.0 if a replica is configured to be writable (which is not the default) writes to replicas are just local and are not propagated.")
		return true
	}
	want, err := strconv.Atoi(args[1])
	if err != nil || want < 0 {
		return false
	}
	millis, err := strconv.Atoi(args[2])
	if err != nil || millis < 0 {
		return false
	}

	ended := make(chan struct{}, 1)
	s.block(c, cl, func() {
		select {
		case ended <- struct{}{}:
		default:
		}
	})
	defer s.unblock(cl)
	var timeout <-chan time.Time
	if millis > 0 {
		timer := time.NewTimer(time.Duration(millis) * time.Millisecond)
		defer timer.Stop()
		timeout = timer.C
	}
	for {
		s.mu.Lock()
		have, verdict := len(s.replicas), cl.verdict
		changed := s.replicasChanged
		s.mu.Unlock()
		if have >= want || verdict == likeTimeout {
			c.WriteInt(have)
			return true
		}
		if verdict == withError {
			c.WriteError(unblockedError)
			return true
		}
		select {
		case <-changed:
		case <-timeout:
			want = 0
		case <-ended:
			if c.Closed() {
				return true
			}
		case <-s.done:
			return true
		}
	}
}
