package testserver

import (
	"bufio"
	"slices"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2/server"
)

// A consumerKey names a consumer of a stream, in whatever database.
type consumerKey struct {
	stream, group, consumer string
}

// see notes that a consumer has called.
func (s *Server) see(stream, group, consumer string) {
	now := s.clock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[consumerKey{stream, group, consumer}] = now
}

// cmdXreadgroup notes the consumer's call.
func (s *Server) cmdXreadgroup(c *server.Peer, cl *client, args []string) bool {
	options := beforeStreams(args)
	if len(options) >= 4 && len(options) < len(args) && strings.EqualFold(options[1], "GROUP") {
		streams := args[len(options)+1:]
		for _, stream := range streams[:len(streams)/2] {
			s.see(stream, options[2], options[3])
		}
	}
	return s.cmdXread(c, cl, args)
}

// cmdXgroup notes consumers that XGROUP creates.
func (s *Server) cmdXgroup(_ *server.Peer, _ *client, args []string) bool {
	if len(args) == 5 && strings.EqualFold(args[1], "CREATECONSUMER") {
		s.see(args[2], args[3], args[4])
	}
	return false
}

// cmdXclaim notes the consumers of XCLAIM and XAUTOCLAIM.
func (s *Server) cmdXclaim(_ *server.Peer, _ *client, args []string) bool {
	if len(args) >= 4 {
		s.see(args[1], args[2], args[3])
	}
	return false
}

// cmdXinfo is XINFO CONSUMERS as of Redis 7.0.
// https://redis.io/commands/xinfo-consumers/
func (s *Server) cmdXinfo(c *server.Peer, cl *client, args []string) bool {
	if len(args) != 4 || !strings.EqualFold(args[1], "CONSUMERS") || cl.multi {
		return false
	}
	raw := s.runOn(c, false, func(*server.Peer) {}, args)
	reply, err := server.ParseReply(bufio.NewReader(strings.NewReader(raw)))
	if err != nil {
		c.WriteRaw(raw)
		return true
	}
	now := s.clock()
	consumers, _ := reply.([]any)
	c.WriteLen(len(consumers))
	for _, consumer := range consumers {
		fields, _ := consumer.([]any)
		field := func(name string) any {
			if i := slices.IndexFunc(fields, func(f any) bool { return text(f) == name }); i >= 0 && i+1 < len(fields) {
				return fields[i+1]
			}
			return nil
		}
		name := text(field("name"))
		s.mu.Lock()
		seen, ok := s.seen[consumerKey{args[2], args[3], name}]
		s.mu.Unlock()
		idle := time.Duration(0)
		if ok {
			idle = now.Sub(seen)
		}
		c.WriteMapLen(3)
		c.WriteBulk("name")
		c.WriteBulk(name)
		c.WriteBulk("pending")
		writeReply(c, field("pending"))
		c.WriteBulk("idle")
		c.WriteInt(int(idle.Milliseconds()))
	}
	return true
}
