package pubsub

// Running reports whether s has goroutines of its own.
func Running(s *Subscription) bool { return s.active() }

// Shards returns how many servers c remembers.
func Shards(c *Channels) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.shards)
}

// Routing reports whether c has a goroutine that places channels.
func Routing(c *Channels) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.router != nil && c.router.running
}
