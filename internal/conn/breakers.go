package conn

import (
	"sync"

	"github.com/redisha/redisha/breaker"
)

// breakers holds the circuit breaker of each server of a role.
type breakers struct {
	role string
	cfg  breaker.Config

	mu    sync.Mutex
	nodes map[string]*breaker.Hook // by address
}

func newBreakers(role string, cfg breaker.Config) *breakers {
	return &breakers{role: role, cfg: cfg, nodes: make(map[string]*breaker.Hook)}
}

// of returns the breaker of addr, the same one each time.
func (b *breakers) of(addr string) (*breaker.Hook, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if h := b.nodes[addr]; h != nil {
		return h, nil
	}
	h, err := breaker.New(b.role, addr, b.cfg)
	if err != nil {
		return nil, err
	}
	b.nodes[addr] = h
	return h, nil
}

// all returns the breakers there are.
func (b *breakers) all() []*breaker.Hook {
	b.mu.Lock()
	defer b.mu.Unlock()
	hooks := make([]*breaker.Hook, 0, len(b.nodes))
	for _, h := range b.nodes {
		hooks = append(hooks, h)
	}
	return hooks
}

// reset closes them: other servers have taken over.
func (b *breakers) reset() {
	for _, h := range b.all() {
		h.Reset()
	}
}

// stats sums up: the state is the worst one.
func (b *breakers) stats() BreakerStats {
	s := BreakerStats{Enabled: true}
	state, writes := breaker.StateClosed, breaker.StateClosed
	for _, h := range b.all() {
		n := h.Counts()
		state, writes = worse(state, h.State()), worse(writes, h.WriteState())
		s.Trips += n.Trips
		s.WriteTrips += n.WriteTrips
		s.Failures += n.Failures
		s.Rejected += n.Rejected
	}
	s.State, s.WriteState = state.String(), writes.String()
	return s
}

func worse(a, b breaker.State) breaker.State {
	rank := map[breaker.State]int{breaker.StateClosed: 0, breaker.StateHalfOpen: 1, breaker.StateOpen: 2}
	if rank[b] > rank[a] {
		return b
	}
	return a
}
