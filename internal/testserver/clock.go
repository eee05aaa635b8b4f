package testserver

import "time"

// SetTime stops the server's clock at t; the zero time lets it go on.
func (s *Server) SetTime(t time.Time) {
	s.clockMu.Lock()
	defer s.clockMu.Unlock()
	if t.IsZero() {
		s.stopped.Store(nil)
	} else {
		s.stopped.Store(&t)
	}
	s.ticked = time.Time{}
	s.Miniredis.SetTime(t)
}

// tick moves the coarse clock on, before a command.
func (s *Server) tick() {
	if !s.coarse.Load() {
		return
	}
	s.clockMu.Lock()
	defer s.clockMu.Unlock()
	if s.stopped.Load() != nil {
		return
	}
	if now := time.Now().Truncate(time.Millisecond); now.After(s.ticked) {
		s.ticked = now
		s.Miniredis.SetTime(now)
	}
}

// clock returns the server's time. It takes no lock: scripts call it while
// miniredis holds its own.
func (s *Server) clock() time.Time {
	if t := s.stopped.Load(); t != nil {
		return *t
	}
	return time.Now()
}
