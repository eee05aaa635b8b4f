// Package redisha gives an application one Redis client per purpose: a cache, a
// broker for background tasks, a result backend and locks. Each has its own
// endpoint, mostly from an environment variable, its own pool of connections,
// its own circuit breaker and its own statistics, and is built for what losing
// data means there.
//
//	cfg, err := redisha.FromEnv(redisha.Cache, redisha.Broker)
//	clients, err := redisha.Open(ctx, cfg)
//	defer clients.Close()
//
// The clients' methods are in packages cache, broker, broker/result and lock.
package redisha
