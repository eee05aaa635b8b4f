package testserver

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/alicebob/miniredis/v2/server"
)

// dispatch answers all commands of a [Sentinel].
func (s *Sentinel) dispatch(c *server.Peer, cmd string, args ...string) bool {
	p := s.peer(c)
	s.mu.Lock()
	hung, hook := s.hung, s.hook
	s.mu.Unlock()
	if hung != nil {
		<-hung
	}
	if hook != nil {
		hook(append([]string{cmd}, args...))
	}
	if message := s.refusal(p, cmd, args); message != "" {
		c.WriteError(message)
		return true
	}
	switch cmd {
	case "PING":
		s.cmdPing(c, p)
	case "AUTH":
		s.cmdAuth(c, p, args)
	case "HELLO":
		s.cmdHello(c, p, args)
	case "CLIENT":
		s.cmdClient(c, args)
	case "ROLE":
		s.cmdRole(c)
	case "SUBSCRIBE":
		s.cmdSubscribe(c, p, args)
	case "UNSUBSCRIBE":
		s.cmdUnsubscribe(c, p, args)
	case "SENTINEL":
		s.cmdSentinel(c, args)
	default:
		c.WriteError(unknownCommand(cmd, args))
	}
	return true
}

func (s *Sentinel) peer(c *server.Peer) *sentinelPeer {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.peers[c]
	if !ok {
		p = &sentinelPeer{authenticated: s.password == "", channels: make(map[string]bool)}
		s.peers[c] = p
		c.OnDisconnect(func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.peers, c)
		})
	}
	return p
}

// refusal returns the error with which a command fails before it is looked at.
func (s *Sentinel) refusal(p *sentinelPeer, cmd string, args []string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !p.authenticated && cmd != "AUTH" && cmd != "HELLO" {
		return "NOAUTH Authentication required."
	}
	if message, ok := s.refused[cmd]; ok {
		return message
	}
	if len(args) > 0 {
		return s.refused[cmd+" "+strings.ToUpper(args[0])]
	}
	return ""
}

func unknownCommand(cmd string, args []string) string {
	var quoted strings.Builder
	for _, arg := range args {
		fmt.Fprintf(&quoted, "'%s' ", arg)
	}
	return fmt.Sprintf("ERR unknown command '%s', with args beginning with: %s", strings.ToLower(cmd), quoted.String())
}

func (s *Sentinel) cmdPing(c *server.Peer, p *sentinelPeer) {
	s.mu.Lock()
	subscribed := len(p.channels) > 0
	s.mu.Unlock()
	if !subscribed || c.Resp3 {
		c.WriteInline("PONG")
		return
	}
	c.WriteLen(2)
	c.WriteBulk("pong")
	c.WriteBulk("")
}

const wrongPass = "WRONGPASS invalid username-password pair or user is disabled."

func (s *Sentinel) cmdAuth(c *server.Peer, p *sentinelPeer, args []string) {
	user := "default"
	if len(args) == 2 {
		user, args = args[0], args[1:]
	}
	if len(args) != 1 {
		c.WriteError("ERR wrong number of arguments for 'auth' command")
		return
	}
	if message := s.authenticate(p, user, args[0]); message != "" {
		c.WriteError(message)
		return
	}
	c.WriteOK()
}

func (s *Sentinel) authenticate(p *sentinelPeer, user, password string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.password == "" && user == "default":
		return "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?"
	case user != s.user || password != s.password:
		return wrongPass
	}
	p.authenticated = true
	return ""
}

func (s *Sentinel) cmdHello(c *server.Peer, p *sentinelPeer, args []string) {
	resp3 := c.Resp3
	if len(args) > 0 {
		if args[0] != "2" && args[0] != "3" {
			c.WriteError("NOPROTO unsupported protocol version")
			return
		}
		resp3 = args[0] == "3"
	}
	for i := 1; i < len(args); i++ {
		switch option := strings.ToUpper(args[i]); {
		case option == "AUTH" && i+2 < len(args):
			if message := s.authenticate(p, args[i+1], args[i+2]); message == wrongPass {
				c.WriteError(message)
				return
			}
			i += 2
		case option == "SETNAME" && i+1 < len(args):
			c.ClientName = args[i+1]
			i++
		default:
			c.WriteError("ERR syntax error in HELLO option '" + args[i] + "'")
			return
		}
	}
	s.mu.Lock()
	authenticated := p.authenticated
	s.mu.Unlock()
	if !authenticated {
		c.WriteError("NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time")
		return
	}
	c.Resp3 = resp3
	proto := 2
	if resp3 {
		proto = 3
	}
	c.WriteMapLen(6)
	for _, pair := range [][2]string{{"server", "redis"}, {"version", version}, {"mode", "sentinel"}} {
		c.WriteBulk(pair[0])
		c.WriteBulk(pair[1])
	}
	c.WriteBulk("proto")
	c.WriteInt(proto)
	c.WriteBulk("id")
	c.WriteInt(1)
	c.WriteBulk("modules")
	c.WriteLen(0)
}

func (s *Sentinel) cmdClient(c *server.Peer, args []string) {
	switch sub := strings.ToUpper(first(args)); {
	case sub == "SETNAME" && len(args) == 2:
		c.ClientName = args[1]
		c.WriteOK()
	case sub == "GETNAME":
		c.WriteBulk(c.ClientName)
	case sub == "SETINFO":
		c.WriteOK()
	default:
		c.WriteError(unknownSubcommand("CLIENT", args))
	}
}

func unknownSubcommand(cmd string, args []string) string {
	return fmt.Sprintf("ERR unknown subcommand '%s'. Try %s HELP.", first(args), cmd)
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// cmdRole is ROLE. https://redis.io/commands/role/
func (s *Sentinel) cmdRole(c *server.Peer) {
	s.mu.Lock()
	names := slices.Sorted(maps.Keys(s.masters))
	s.mu.Unlock()
	c.WriteLen(2)
	c.WriteBulk("sentinel")
	c.WriteStrings(names)
}

func (s *Sentinel) cmdSubscribe(c *server.Peer, p *sentinelPeer, channels []string) {
	s.changeSubscriptions(c, p, "subscribe", channels)
}

func (s *Sentinel) cmdUnsubscribe(c *server.Peer, p *sentinelPeer, channels []string) {
	if len(channels) == 0 {
		s.mu.Lock()
		channels = slices.Sorted(maps.Keys(p.channels))
		s.mu.Unlock()
	}
	s.changeSubscriptions(c, p, "unsubscribe", channels)
}

func (s *Sentinel) changeSubscriptions(c *server.Peer, p *sentinelPeer, kind string, channels []string) {
	for _, channel := range channels {
		s.mu.Lock()
		if kind == "subscribe" {
			p.channels[channel] = true
		} else {
			delete(p.channels, channel)
		}
		count := len(p.channels)
		s.mu.Unlock()
		c.Block(func(w *server.Writer) {
			w.WritePushLen(3)
			w.WriteBulk(kind)
			w.WriteBulk(channel)
			w.WriteInt(count)
		})
	}
}

const noSuchMaster = "ERR No such master with that name"

// cmdSentinel is SENTINEL.
// https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/#sentinel-commands
func (s *Sentinel) cmdSentinel(c *server.Peer, args []string) {
	sub := strings.ToUpper(first(args))
	switch {
	case sub == "MYID" && len(args) == 1:
		c.WriteBulk(s.ID())
		return
	case sub == "MASTERS" && len(args) == 1:
		s.mu.Lock()
		masters := slices.SortedFunc(maps.Values(s.masters), func(a, b Monitored) int { return strings.Compare(a.Name, b.Name) })
		s.mu.Unlock()
		c.WriteLen(len(masters))
		for _, m := range masters {
			writeFields(c, m.fields())
		}
		return
	case len(args) != 2:
		c.WriteError(unknownSubcommand("SENTINEL", args))
		return
	}
	m, ok := s.Monitored(args[1])
	if !ok && sub == "GET-MASTER-ADDR-BY-NAME" {
		c.WriteLen(-1)
		return
	}
	if !ok {
		c.WriteError(noSuchMaster)
		return
	}
	switch sub {
	case "GET-MASTER-ADDR-BY-NAME":
		host, port := split(m.Primary)
		c.WriteStrings([]string{host, port})
	case "MASTER":
		writeFields(c, m.fields())
	case "REPLICAS", "SLAVES":
		c.WriteLen(len(m.Replicas))
		for _, r := range m.Replicas {
			writeFields(c, r.fields(m.Primary))
		}
	case "SENTINELS":
		c.WriteLen(len(m.Others))
		for _, o := range m.Others {
			writeFields(c, o.fields())
		}
	case "CKQUORUM":
		c.WriteInline(fmt.Sprintf("OK %d usable Sentinels. Quorum and failover authorization can be reached", len(m.Others)+1))
	default:
		c.WriteError(unknownSubcommand("SENTINEL", args))
	}
}

func (m Monitored) fields() []string {
	host, port := split(m.Primary)
	return []string{
		"name", m.Name, "ip", host, "port", port, "runid", "", "flags", m.Flags,
		"role-reported", "master",
		"config-epoch", strconv.FormatUint(m.Epoch, 10),
		"num-slaves", strconv.Itoa(len(m.Replicas)),
		"num-other-sentinels", strconv.Itoa(len(m.Others)),
		"quorum", strconv.Itoa(m.Quorum),
	}
}

func (r MonitoredReplica) fields(primary string) []string {
	host, port := split(r.Addr)
	primaryHost, primaryPort := split(primary)
	flags, link := r.Flags, "ok"
	if flags == "" {
		flags = "slave"
	}
	if r.LinkDown {
		link = "err"
	}
	return []string{
		"name", r.Addr, "ip", host, "port", port, "runid", "", "flags", flags,
		"master-link-status", link, "master-host", primaryHost, "master-port", primaryPort,
		"slave-priority", "100",
	}
}

func (o OtherSentinel) fields() []string {
	host, port := split(o.Addr)
	flags := o.Flags
	if flags == "" {
		flags = "sentinel"
	}
	return []string{"name", o.ID, "ip", host, "port", port, "runid", o.ID, "flags", flags, "voted-leader", "?", "voted-leader-epoch", "0"}
}

// writeFields writes pairs of names and values: a map in RESP 3.
func writeFields(c *server.Peer, fields []string) {
	c.WriteMapLen(len(fields) / 2)
	for _, f := range fields {
		c.WriteBulk(f)
	}
}
