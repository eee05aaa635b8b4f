package redishatest

import "time"

// Stop cuts all connections and refuses new ones until Restart: the server is
// down. What it holds stays.
func (s *Server) Stop() {
	s.srv.Stop()
	s.tell()
}

// Restart lets the server serve again after Stop. It fails after Close.
func (s *Server) Restart() error {
	err := s.srv.Restart()
	s.tell()
	return err
}

func (s *Server) tell() {
	if s.changed != nil {
		s.changed()
	}
}

// Hang lets the server take connections and commands and answer nothing, like a
// stopped process, until it is called with false. Then it executes what it was
// sent meanwhile, also what nobody waits for any more. Stop ends it as well.
func (s *Server) Hang(hang bool) { s.srv.Hang(hang) }

// CutConnections cuts all connections; new ones are taken.
func (s *Server) CutConnections() { s.srv.CutConnections() }

// CutReplies lets the next n of the named commands ("INCR", "EVALSHA") be
// executed and cuts the connection of each instead of answering, so that the
// client cannot know what became of it. Without names all commands count, but
// for PING and those with which a client begins a connection. Of a transaction
// EXEC counts. 0 ends it.
func (s *Server) CutReplies(n int, commands ...string) { s.srv.CutReplies(n, commands...) }

// SetLatency lets each reply come d later; 0 ends that. Commands are executed
// when they come.
func (s *Server) SetLatency(d time.Duration) { s.srv.SetLatency(d) }

// SetError lets commands fail with an error reply, for example "ERR no luck
// today": the named ones, also when a script calls them, or all. The empty
// message ends that for the named ones or for all.
//
// For common errors there are [Server.SetLoading], [Server.SetReadOnly] and
// [Server.SetFull], which fail as Redis does: no other commands than there.
func (s *Server) SetError(message string, commands ...string) { s.srv.SetError(message, commands...) }

// SetLoading lets commands fail with LOADING for d, like those of a server that
// was restarted and reads its data; 0 ends that.
func (s *Server) SetLoading(d time.Duration) { s.srv.SetLoading(d) }

// SetReadOnly makes the server a replica, which refuses to write with READONLY
// and says what it is when it is asked, like the server behind a fixed address
// that has been demoted. Connections stay.
func (s *Server) SetReadOnly(readOnly bool) { s.srv.SetReadOnly(readOnly) }

// SetFull lets commands that store data fail with OOM, like those of a server
// that has reached maxmemory and evicts nothing. Reading and deleting go on, and
// a script that has deleted something may store.
func (s *Server) SetFull(full bool) { s.srv.SetFull(full) }
