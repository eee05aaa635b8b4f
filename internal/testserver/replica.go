package testserver

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"
)

// StartReplica starts a replica of s, which stands for address: it refuses to
// write, and says what it is. It shares the data of s, so that it has each write
// at once, unless it serves a snapshot. Close ends it, before s. SetReplicaAddrs
// tells s of it.
func (s *Server) StartReplica(address string) *Server {
	replica := newServer(s.store, address)
	replica.upstream = s.Addr()
	return replica
}

// SetUpstream makes the server a replica of the one at address, or a primary if
// that is empty. Connections stay.
func (s *Server) SetUpstream(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.upstream = address
}

// primary is the address of the server's primary; empty if it is one. The caller
// holds mu.
func (s *Server) primary() string {
	if s.upstream == "" && s.faults.demoted {
		return elsewhere
	}
	return s.upstream
}

// elsewhere is the primary of a server that has none and must not write.
const elsewhere = "127.0.0.1:6380"

// role returns "master", or what a replica is called.
func (s *Server) role(replica string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.primary() != "" {
		return replica
	}
	return "master"
}

// The snapshot of database n is database snapshotDB + n.
const (
	databases  = 16
	snapshotDB = 1000
)

//go:embed snapshot.lua
var snapshotScript string

// Snapshot copies the data as they are now. There is one snapshot of a server
// and its replicas; it is as of Redis but for the TTLs of fields of hashes, which
// it has not.
func (s *Server) Snapshot() error {
	s.scriptMu.Lock()
	defer s.scriptMu.Unlock()
	reply := s.own("EVAL", snapshotScript, "0", strconv.Itoa(databases), strconv.Itoa(snapshotDB))
	if strings.HasPrefix(reply, "-") {
		return fmt.Errorf("testserver: snapshot: %s", strings.TrimSpace(reply[1:]))
	}
	return nil
}

// Revert makes the snapshot the data: what was written since is lost.
func (s *Server) Revert() {
	for i := range databases {
		s.SwapDB(i, snapshotDB+i)
		s.DB(snapshotDB + i).FlushDB()
	}
}

// ServeSnapshot lets the server serve the snapshot instead of the data, as a
// replica does that has lost its primary. Connections are cut if that changes
// anything.
func (s *Server) ServeSnapshot(frozen bool) {
	s.mu.Lock()
	changed := s.frozen != frozen
	s.frozen = frozen
	s.mu.Unlock()
	if changed {
		s.CutConnections()
	}
}

// selected translates the argument of SELECT while the snapshot is served.
func (s *Server) selected(args []string) []string {
	s.mu.Lock()
	frozen := s.frozen
	s.mu.Unlock()
	if !frozen || len(args) != 1 {
		return args
	}
	n, err := strconv.Atoi(args[0])
	if err != nil || n < 0 {
		return args
	}
	return []string{strconv.Itoa(snapshotDB + n)}
}
