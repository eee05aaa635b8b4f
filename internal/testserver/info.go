package testserver

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/alicebob/miniredis/v2/server"
)

// sections are those of INFO, in order.
var sections = []struct {
	name string
	text func(*Server) string
}{
	{"Server", func(s *Server) string {
		s.mu.Lock()
		runID := s.runID
		s.mu.Unlock()
		uptime := s.clock().Sub(s.started)
		return fmt.Sprintf("redis_version:%s\r\nredis_mode:standalone\r\nprocess_id:%d\r\nrun_id:%s\r\nuptime_in_seconds:%d\r\n",
			version, os.Getpid(), runID, int(uptime.Seconds()))
	}},
	{"Clients", func(s *Server) string {
		return fmt.Sprintf("connected_clients:%d\r\n", s.front.ClientsLen())
	}},
	{"Memory", func(*Server) string {
		return "used_memory:0\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n"
	}},
	{"Persistence", func(*Server) string {
		return "loading:0\r\naof_enabled:0\r\n"
	}},
	{"Stats", func(s *Server) string {
		return fmt.Sprintf("total_connections_received:%d\r\ntotal_commands_processed:%d\r\n",
			s.front.TotalConnections(), s.srv.TotalCommands())
	}},
	{"Replication", func(s *Server) string {
		role := s.role("slave")
		s.mu.Lock()
		defer s.mu.Unlock()
		var b strings.Builder
		fmt.Fprintf(&b, "role:%s\r\n", role)
		if upstream := s.primary(); upstream != "" {
			host, port := split(upstream)
			fmt.Fprintf(&b, "master_host:%s\r\nmaster_port:%s\r\nmaster_link_status:up\r\n", host, port)
		}
		fmt.Fprintf(&b, "connected_slaves:%d\r\n", len(s.replicas))
		for i, replica := range s.replicas {
			host, port := split(replica)
			fmt.Fprintf(&b, "slave%d:ip=%s,port=%s,state=online,offset=0,lag=0\r\n", i, host, port)
		}
		b.WriteString("master_repl_offset:0\r\n")
		return b.String()
	}},
	{"Cluster", func(*Server) string {
		return "cluster_enabled:0\r\n"
	}},
}

// cmdInfo is INFO. A section that is not known is left out, as Redis does.
// https://redis.io/commands/info/
func (s *Server) cmdInfo(c *server.Peer, cl *client, args []string) bool {
	if !cl.script && !s.admitted(c, cl, "INFO") {
		return true
	}
	wanted := args[1:]
	all := len(wanted) == 0 || slices.ContainsFunc(wanted, func(name string) bool {
		return slices.Contains([]string{"all", "default", "everything"}, strings.ToLower(name))
	})
	var b strings.Builder
	for _, section := range sections {
		if !all && !slices.ContainsFunc(wanted, func(name string) bool { return strings.EqualFold(name, section.name) }) {
			continue
		}
		if b.Len() > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString("# " + section.name + "\r\n" + section.text(s))
	}
	c.WriteBulk(b.String())
	return true
}
