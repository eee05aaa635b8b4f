package testserver

import (
	"strings"
	"time"
)

// faults are what a server has been told to do wrong.
type faults struct {
	all     string            // the error of every command
	named   map[string]string // the errors of some
	loading time.Time         // until when it loads its data
	full    bool
	demoted bool // it says that it is a replica
	latency time.Duration
	pause   *pause // nil unless it hangs

	cuts     int             // replies still to be cut
	cutNames map[string]bool // of which commands; nil: of most
}

// A pause is a time without an answer.
type pause struct {
	over   chan struct{} // closed at its end
	killed bool          // what has been asked meanwhile is not executed
}

// SetError lets commands fail with this message, for example "ERR no luck
// today": those that are named, or else every one, also in scripts. The empty
// message ends that, for the named ones or for all.
func (s *Server) SetError(message string, commands ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := &s.faults
	switch {
	case len(commands) == 0 && message == "":
		f.all, f.named = "", nil
	case len(commands) == 0:
		f.all = message
	case f.named == nil:
		f.named = make(map[string]string)
	}
	for _, name := range commands {
		f.named[strings.ToUpper(name)] = message
	}
}

// SetLoading lets commands fail for d with LOADING, as those of a server that
// has just been restarted; 0 ends that.
func (s *Server) SetLoading(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults.loading = time.Now().Add(d)
}

// SetFull lets commands that store data fail with OOM, as a server at maxmemory
// does. A script's later writes succeed once one that stores nothing has.
func (s *Server) SetFull(full bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults.full = full
}

// SetReadOnly makes the server say that it is a replica, and refuse to write, as
// behind an address whose server has been demoted. Connections stay.
func (s *Server) SetReadOnly(readOnly bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults.demoted = readOnly
}

// SetLatency lets each reply come d later. Commands are executed at once.
func (s *Server) SetLatency(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults.latency = d
}

func (s *Server) latency() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.faults.latency
}

// Hang lets the server take connections and commands and answer nothing, as a
// stopped process does, until it is called with false: then it executes what it
// was sent meanwhile, also by clients that have gone. Stop ends it as well.
func (s *Server) Hang(hang bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !hang:
		s.wakeUp(false)
	case s.faults.pause == nil && !s.closed:
		s.faults.pause = &pause{over: make(chan struct{})}
	}
}

// wakeUp ends the pause, if there is one. The caller holds mu.
func (s *Server) wakeUp(killed bool) {
	if p := s.faults.pause; p != nil {
		p.killed = killed
		close(p.over)
		s.faults.pause = nil
	}
}

// awake waits while the server hangs, and reports whether it lives on.
func (s *Server) awake() bool {
	for {
		s.mu.Lock()
		p := s.faults.pause
		s.mu.Unlock()
		if p == nil {
			return true
		}
		<-p.over
		if p.killed {
			return false
		}
	}
}

// CutReplies executes the next n of the named commands, or of all but those
// with which a connection begins and PING, and closes the connection of each
// instead of answering: the client cannot know what became of it. Of a
// transaction it is EXEC that counts.
func (s *Server) CutReplies(n int, commands ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults.cuts, s.faults.cutNames = n, nil
	if len(commands) > 0 {
		s.faults.cutNames = make(map[string]bool)
		for _, name := range commands {
			s.faults.cutNames[strings.ToUpper(name)] = true
		}
	}
}

func (s *Server) cutsReply(cl *client, cmd string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := &s.faults
	switch {
	case f.cuts <= 0, subscribing[cmd], cmd == "MULTI", cl.multi && cmd != "EXEC":
		return false
	case f.cutNames != nil && !f.cutNames[cmd], f.cutNames == nil && greeting[cmd]:
		return false
	}
	f.cuts--
	return true
}

// fault returns the error with which a command fails before it is looked at.
func (s *Server) fault(cl *client, cmd string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := &s.faults
	if f.all != "" {
		return f.all
	}
	if message := f.named[cmd]; message != "" {
		return message
	}
	stores, writes := storing[cmd], storing[cmd] || changing[cmd]
	switch {
	case cl.multi && cmd == "EXEC":
		stores, writes = cl.stores, cl.writes
	case cl.multi:
		cl.stores, cl.writes = cl.stores || stores, cl.writes || writes
	}
	message := ""
	switch {
	case !cl.script && !whileLoading[cmd] && time.Now().Before(f.loading):
		message = "LOADING Redis is loading the dataset in memory"
	case writes && s.primary() != "":
		message = "READONLY You can't write against a read only replica."
	case stores && f.full && !(cl.script && s.script.wrote):
		message = "OOM command not allowed when used memory > 'maxmemory'."
	case cl.script && writes:
		s.script.wrote = true
	}
	if message != "" && cl.multi && cmd == "EXEC" {
		message = "EXECABORT Transaction discarded because of: " + message
	}
	return message
}
