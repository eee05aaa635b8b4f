package pubsub

// Running reports whether s has goroutines of its own.
func Running(s *Subscription) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running
}
