package testserver

import (
	"bufio"
	"fmt"
	"strconv"
	"strings"

	"github.com/alicebob/miniredis/v2/server"
)

// version is what HELLO and INFO tell: the oldest that the library supports,
// so that code which goes by the version expects nothing that is not there.
const version = "7.0.0"

// cmdRole is ROLE. https://redis.io/commands/role/
func (s *Server) cmdRole(c *server.Peer, cl *client, args []string) bool {
	if !s.admitted(c, cl, "ROLE") {
		return true
	}
	if len(args) != 1 {
		c.WriteError("ERR wrong number of arguments for 'role' command")
		return true
	}
	s.mu.Lock()
	replicas, upstream := s.replicas, s.primary()
	s.mu.Unlock()
	if upstream != "" {
		host, port := split(upstream)
		number, _ := strconv.Atoi(port)
		c.WriteLen(5)
		c.WriteBulk("slave")
		c.WriteBulk(host)
		c.WriteInt(number)
		c.WriteBulk("connected")
		c.WriteInt(0)
		return true
	}
	c.WriteLen(3)
	c.WriteBulk("master")
	c.WriteInt(0)
	c.WriteLen(len(replicas))
	for _, replica := range replicas {
		host, port := split(replica)
		c.WriteStrings([]string{host, port, "0"})
	}
	return true
}

// cmdHello is HELLO. https://redis.io/commands/hello/
func (s *Server) cmdHello(c *server.Peer, cl *client, args []string) bool {
	if cl.script {
		c.WriteError(notFromScript)
		return true
	}
	if cl.multi {
		return false
	}
	var auth bool
	var name *string
	for i := 2; i < len(args); i++ {
		switch strings.ToUpper(args[i]) {
		case "AUTH":
			auth = true
			i += 2
		case "SETNAME":
			if i+1 < len(args) {
				name = &args[i+1]
			}
			i++
		}
	}
	if !auth && strings.HasPrefix(s.run(c, "PING"), "-NOAUTH") {
		c.WriteError("NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time")
		return true
	}
	if len(args) > 1 {
		var inner *server.Peer
		reply := s.runOn(c, c.Resp3, func(p *server.Peer) { inner = p }, args)
		if strings.HasPrefix(reply, "-") {
			c.WriteRaw(reply)
			return true
		}
		c.Resp3 = inner.Resp3
	}
	if name != nil {
		c.ClientName = *name
	}
	protocol := 2
	if c.Resp3 {
		protocol = 3
	}
	c.WriteMapLen(7)
	c.WriteBulk("server")
	c.WriteBulk("redis")
	c.WriteBulk("version")
	c.WriteBulk(version)
	c.WriteBulk("proto")
	c.WriteInt(protocol)
	c.WriteBulk("id")
	c.WriteInt(cl.id)
	c.WriteBulk("mode")
	c.WriteBulk("standalone")
	c.WriteBulk("role")
	c.WriteBulk(s.role("replica"))
	c.WriteBulk("modules")
	c.WriteLen(0)
	return true
}

// cmdClient is CLIENT, as far as roles use it. https://redis.io/commands/client/
func (s *Server) cmdClient(c *server.Peer, cl *client, args []string) bool {
	if len(args) < 2 {
		return false
	}
	sub := strings.ToUpper(args[1])
	known := clientCommands[sub]
	if known == nil && !cl.script {
		return false // SETNAME, GETNAME, or unknown
	}
	if s.admitted(c, cl, "CLIENT "+sub) {
		known(s, c, cl, args[2:])
	}
	return true
}

var clientCommands = map[string]func(*Server, *server.Peer, *client, []string){
	"ID": func(_ *Server, c *server.Peer, cl *client, args []string) {
		if len(args) != 0 {
			c.WriteError("ERR wrong number of arguments for 'client|id' command")
			return
		}
		c.WriteInt(cl.id)
	},
	"SETINFO": func(_ *Server, c *server.Peer, _ *client, args []string) {
		switch {
		case len(args) != 2:
			c.WriteError("ERR wrong number of arguments for 'client|setinfo' command")
		case !strings.EqualFold(args[0], "lib-name") && !strings.EqualFold(args[0], "lib-ver"):
			c.WriteError(fmt.Sprintf("ERR Unrecognized option '%s'", args[0]))
		default:
			c.WriteOK()
		}
	},
	"NO-EVICT": onOff("no-evict"),
	"NO-TOUCH": onOff("no-touch"),
	"UNBLOCK":  (*Server).clientUnblock,
}

func onOff(name string) func(*Server, *server.Peer, *client, []string) {
	return func(_ *Server, c *server.Peer, _ *client, args []string) {
		switch {
		case len(args) != 1:
			c.WriteError("ERR wrong number of arguments for 'client|" + name + "' command")
		case !strings.EqualFold(args[0], "on") && !strings.EqualFold(args[0], "off"):
			c.WriteError("ERR syntax error")
		default:
			c.WriteOK()
		}
	}
}

// clientUnblock ends another connection's blocked command.
// https://redis.io/commands/client-unblock/
func (s *Server) clientUnblock(c *server.Peer, _ *client, args []string) {
	if len(args) != 1 && len(args) != 2 {
		c.WriteError("ERR wrong number of arguments for 'client|unblock' command")
		return
	}
	verdict := likeTimeout
	if len(args) == 2 {
		switch strings.ToUpper(args[1]) {
		case "TIMEOUT":
		case "ERROR":
			verdict = withError
		default:
			c.WriteError("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR")
			return
		}
	}
	id, err := strconv.Atoi(args[0])
	if err != nil {
		c.WriteError("ERR value is not an integer or out of range")
		return
	}
	var end func()
	s.mu.Lock()
	for _, other := range s.clients {
		if other.id == id && other.waiting != nil && other.verdict == notUnblocked {
			other.verdict, end = verdict, other.waiting
		}
	}
	s.mu.Unlock()
	if end == nil {
		c.WriteInt(0)
		return
	}
	end()
	c.WriteInt(1)
}

// cmdCommand is COMMAND and COMMAND INFO.
// https://redis.io/commands/command-info/
func (s *Server) cmdCommand(c *server.Peer, cl *client, args []string) bool {
	if len(args) == 1 {
		return false // miniredis' table of Redis 5
	}
	if !cl.script && !s.admitted(c, cl, "COMMAND") {
		return true
	}
	switch sub := strings.ToUpper(args[1]); sub {
	case "INFO":
		c.WriteLen(len(args) - 2)
		for _, name := range args[2:] {
			s.writeCommandInfo(c, strings.ToLower(name))
		}
	default:
		c.WriteError(fmt.Sprintf("ERR unknown subcommand '%s'. Try COMMAND HELP.", args[1]))
	}
	return true
}

// known reports whether a command can be called, for example "client|unblock".
func (s *Server) known(name string) bool {
	if sub, ok := strings.CutPrefix(name, "client|"); ok {
		return sub == "setname" || sub == "getname" || clientCommands[strings.ToUpper(sub)] != nil
	}
	return s.srv.IsRegisteredCommand(name) || handlers[strings.ToUpper(name)] != nil
}

func (s *Server) writeCommandInfo(c *server.Peer, name string) {
	switch entry := s.commandTable(c)[name]; {
	case !s.known(name) && c.Resp3:
		c.WriteNull()
	case !s.known(name):
		c.WriteLen(-1)
	case entry != nil:
		writeReply(c, entry)
	default: // newer than miniredis' table: any number of arguments, no keys told
		flag := "write"
		if s.srv.IsReadOnlyCommand(name) {
			flag = "readonly"
		}
		writeReply(c, []any{name, -1, []any{server.Simple(flag)}, 0, 0, 0})
	}
}

// commandTable returns miniredis' reply to COMMAND by name.
func (s *Server) commandTable(c *server.Peer) map[string][]any {
	s.mu.Lock()
	table := s.commands
	s.mu.Unlock()
	if table != nil {
		return table
	}
	reply, _ := server.ParseReply(bufio.NewReader(strings.NewReader(s.runOn(c, false, func(*server.Peer) {}, []string{"COMMAND"}))))
	entries, _ := reply.([]any)
	table = make(map[string][]any, len(entries))
	for _, entry := range entries {
		if fields, ok := entry.([]any); ok && len(fields) > 0 {
			table[text(fields[0])] = fields
		}
	}
	s.mu.Lock()
	s.commands = table
	s.mu.Unlock()
	return table
}

// writeReply writes a value as server.ParseReply returns it.
func writeReply(c *server.Peer, value any) {
	switch v := value.(type) {
	case []any:
		c.WriteLen(len(v))
		for _, element := range v {
			writeReply(c, element)
		}
	case int:
		c.WriteInt(v)
	case server.Simple:
		c.WriteInline(string(v))
	case nil:
		c.WriteNull()
	default:
		c.WriteBulk(text(v))
	}
}

// text returns the string in a value as server.ParseReply returns it.
func text(value any) string {
	switch v := value.(type) {
	case string:
		return v
	case []byte:
		return string(v)
	case server.Simple:
		return string(v)
	}
	return fmt.Sprint(value)
}
