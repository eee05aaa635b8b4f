package testserver

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/alicebob/miniredis/v2/server"
)

// A client is what the server knows of a connection, or of a script's calls.
type client struct {
	id     int
	script bool // calls of a script: miniredis holds its lock meanwhile
	multi  bool // between MULTI and EXEC
	stores bool // its transaction stores something
	writes bool // its transaction writes
	cut    bool // its connection is being cut, see CutReplies

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
		"EXEC":     (*Server).cmdExec,
		"DISCARD":  (*Server).cmdDiscard,
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

// dispatch answers each command of a connection.
func (s *Server) dispatch(c *server.Peer, cmd string, args ...string) bool {
	if !s.awake() {
		c.Close()
		return true
	}
	cl := s.client(c)
	switch {
	case cl.cut:
	case s.cutsReply(cl, cmd):
		cl.cut = true
		lost := server.NewPeer(bufio.NewWriter(io.Discard))
		lost.Ctx, lost.Resp3 = c.Ctx, c.Resp3
		s.mu.Lock()
		s.clients[lost] = cl
		s.mu.Unlock()
		s.execute(lost, cl, cmd, args)
		s.mu.Lock()
		delete(s.clients, lost)
		s.mu.Unlock()
		c.Close()
	default:
		s.execute(c, cl, cmd, args)
	}
	return true
}

func (s *Server) execute(c *server.Peer, cl *client, cmd string, args []string) {
	if s.answer(c, cl, cmd, args) {
		return
	}
	if cmd == "SELECT" {
		args = s.selected(args)
	}
	s.srv.Dispatch(c, append([]string{cmd}, args...))
}

// answer answers a command which fails, or which miniredis does not answer as
// Redis does. It sees the calls of scripts as well.
func (s *Server) answer(c *server.Peer, cl *client, cmd string, args []string) bool {
	s.mu.Lock()
	hook := s.hook
	s.mu.Unlock()
	if hook != nil && hook(c, cmd, args...) {
		return true
	}
	if message := s.fault(cl, cmd); message != "" {
		s.fail(c, cl, cmd, message)
		return true
	}
	if !cl.script {
		s.tick()
	}
	handler, ok := handlers[cmd]
	return ok && handler(s, c, cl, append([]string{cmd}, args...))
}

// fail answers a command with an error, which spoils the transaction that it
// belongs to.
func (s *Server) fail(c *server.Peer, cl *client, cmd, message string) {
	switch {
	case cl.multi && cmd == "EXEC":
		s.run(c, "DISCARD")
		cl.multi = false
	case cl.multi:
		s.run(c, "ECHO") // a wrong call
	}
	c.WriteError(message)
}

// client returns what is known of c. A connection has no state before its first
// command.
func (s *Server) client(c *server.Peer) *client {
	s.mu.Lock()
	cl, ok := s.clients[c]
	if ok {
		s.mu.Unlock()
		return cl
	}
	s.lastID++
	cl = &client{id: s.lastID}
	s.clients[c] = cl
	frozen := s.frozen
	s.mu.Unlock()
	c.OnDisconnect(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.clients, c)
	})
	if frozen {
		s.run(c, "SELECT", strconv.Itoa(snapshotDB))
	}
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
	s.clients[inner] = &client{}
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

// own runs a command on a connection of its own.
func (s *Server) own(args ...string) string {
	return s.run(server.NewPeer(bufio.NewWriter(io.Discard)), args...)
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
		cl.multi, cl.stores, cl.writes = true, false, false
	}
	c.WriteRaw(reply)
	return true
}

// cmdExec runs the transaction as one that may hold scripts.
func (s *Server) cmdExec(c *server.Peer, cl *client, args []string) bool {
	if cl.script {
		return false
	}
	cl.multi = false
	c.WriteRaw(s.runScript(c, args))
	return true
}

func (s *Server) cmdDiscard(_ *server.Peer, cl *client, _ []string) bool {
	cl.multi = false
	return false
}

// runScript is run for what may hold scripts, whose calls this server answers.
func (s *Server) runScript(c *server.Peer, args []string) string {
	s.scriptMu.Lock()
	defer s.scriptMu.Unlock()
	s.script = scriptRun{on: s}
	defer func() { s.script = scriptRun{} }()
	return s.run(c, args...)
}
