package pubsub

// Running reports whether s has goroutines of its own.
func Running(s *Subscription) bool { return s.active() }
