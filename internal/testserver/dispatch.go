package testserver

import (
	"bufio"
	"bytes"
	"fmt"
	"strings"

	"github.com/alicebob/miniredis/v2/server"
)

// A client is what the server knows of a connection, or of a script's calls.
type client struct {
	id     int
	script bool // calls of a script: miniredis holds its lock meanwhile
	multi  bool // between MULTI and EXEC
	inner  bool // a command that the server itself runs, see run

	waiting func()       // ends what the connection is blocked in; nil if it is not
	verdict unblockReply // how CLIENT UNBLOCK wants it to end
}

// handlers are the commands answered here and not by miniredis. A handler
// returns false to leave a call to miniredis after all.
var handlers map[string]func(s *Server, c *server.Peer, cl *client, args []string) bool

func init() { // not a literal: the handlers themselves refer to it
	handlers = map[string]func(*Server, *server.Peer, *client, []string) bool{
		"CLIENT":   (*Server).cmdClient,
		"COMMAND":  (*Server).cmdCommand,
		"HELLO":    (*Server).cmdHello,
		"INFO":     (*Server).cmdInfo,
		"ROLE":     (*Server).cmdRole,
		"WAIT":     (*Server).cmdWait,
		"MULTI":    (*Server).cmdMulti,
		"EXEC":     (*Server).cmdEndMulti,
		"DISCARD":  (*Server).cmdEndMulti,
		"EVAL":     (*Server).cmdEval,
		"EVALSHA":  (*Server).cmdEval,
		"XINFO":    (*Server).cmdXinfo,
		"XGROUP":   (*Server).cmdXgroup,
		"XCLAIM":   (*Server).cmdXclaim,
		"XREAD":    (*Server).cmdXread,
		"BLPOP":    (*Server).cmdBlocking,
		"BRPOP":    (*Server).cmdBlocking,
		"BLMOVE":   (*Server).cmdBlocking,
		"BZMPOP":   (*Server).cmdBlocking,
		"BZPOPMIN": (*Server).cmdBlocking,
		"BZPOPMAX": (*Server).cmdBlocking,

		"EVAL_RO":    (*Server).cmdEval,
		"EVALSHA_RO": (*Server).cmdEval,
		"XAUTOCLAIM": (*Server).cmdXclaim,
		"XREADGROUP": (*Server).cmdXreadgroup,
		"BRPOPLPUSH": (*Server).cmdBlocking,
	}
}

// dispatch sees each command before miniredis does.
func (s *Server) dispatch(c *server.Peer, cmd string, args ...string) bool {
	cl := s.client(c)
	if cl.inner {
		return false
	}
	s.mu.Lock()
	hook, failure := s.hook, s.err
	s.mu.Unlock()
	if hook != nil && hook(c, cmd, args...) {
		return true
	}
	if failure != "" {
		c.WriteError(failure)
		return true
	}
	if !cl.script {
		s.tick()
	}
	handler, ok := handlers[cmd]
	return ok && handler(s, c, cl, append([]string{cmd}, args...))
}

// client returns what is known of c. A connection has no state before its first
// command, while the calls of a script start with that of the script.
func (s *Server) client(c *server.Peer) *client {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cl, ok := s.clients[c]; ok {
		return cl
	}
	if c.Ctx != nil {
		return &client{script: true}
	}
	s.lastID++
	cl := &client{id: s.lastID}
	s.clients[c] = cl
	c.OnDisconnect(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.clients, c)
	})
	return cl
}

// run lets miniredis execute a command as if c had sent it, and returns the
// reply in the protocol that c speaks.
func (s *Server) run(c *server.Peer, args ...string) string {
	return s.runOn(c, c.Resp3, func(*server.Peer) {}, args)
}

// runOn is run with a choice of protocol; started gets the stand-in for c on
// which the command runs. Closing that ends a blocked command without a reply.
func (s *Server) runOn(c *server.Peer, resp3 bool, started func(*server.Peer), args []string) string {
	var reply bytes.Buffer
	inner := server.NewPeer(bufio.NewWriter(&reply))
	inner.Ctx, inner.Resp3, inner.ClientName = c.Ctx, resp3, c.ClientName
	s.mu.Lock()
	s.clients[inner] = &client{inner: true}
	s.mu.Unlock()
	started(inner)
	s.srv.Dispatch(inner, args)
	inner.Flush()
	s.mu.Lock()
	delete(s.clients, inner)
	s.mu.Unlock()
	c.Ctx, c.ClientName = inner.Ctx, inner.ClientName
	return reply.String()
}

const notFromScript = "ERR This Redis command is not allowed from script"

// admitted answers calls that most of our own commands have to refuse: in a
// script, before AUTH, and within MULTI, which then fails as a whole.
func (s *Server) admitted(c *server.Peer, cl *client, cmd string) bool {
	if cl.script {
		c.WriteError(notFromScript)
		return false
	}
	if cl.multi {
		s.run(c, "ECHO") // a wrong call, which spoils the transaction
		c.WriteError(fmt.Sprintf("ERR testserver does not support %s within MULTI", cmd))
		return false
	}
	if reply := s.run(c, "PING"); strings.HasPrefix(reply, "-") {
		c.WriteRaw(reply)
		return false
	}
	return true
}

func (s *Server) cmdMulti(c *server.Peer, cl *client, args []string) bool {
	reply := s.run(c, args...)
	if strings.HasPrefix(reply, "+") {
		cl.multi = true
	}
	c.WriteRaw(reply)
	return true
}

func (s *Server) cmdEndMulti(_ *server.Peer, cl *client, _ []string) bool {
	cl.multi = false
	return false
}
