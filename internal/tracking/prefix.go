package tracking

import (
	"context"
	"strings"
)

// A Prefix is the beginning of the keys that a server is asked to tell of.
type Prefix struct {
	t          *Tracker
	text       string
	invalidate func(keys []string)
	place      int64 // among those of the Tracker
}

// compare orders prefixes by their text.
func (p *Prefix) compare(text string) int { return strings.Compare(p.text, text) }

// covers reports whether key has the prefix.
func (p *Prefix) covers(key string) bool { return strings.HasPrefix(key, p.text) }

// has reports whether the prefix begins with text.
func (p *Prefix) has(text string) bool { return strings.HasPrefix(p.text, text) }

// A State says what is told of a key.
type State uint8

const (
	// Down means that there is no connection now, or not yet: nothing may be kept.
	Down State = iota

	// Standing means that all changes are told from now on.
	Standing

	// Refused means that the server tells nothing. What is kept is bounded by its
	// age alone. When the server tells after all, the epoch ends.
	Refused
)

func (s State) String() string {
	switch s {
	case Standing:
		return "standing"
	case Refused:
		return "refused"
	default:
		return "down"
	}
}

// State returns the state of the node that serves key, and the epoch for which
// it holds: see the package's description. It costs two atomic loads; on Cluster
// also the look-up of the node, for which ctx counts while no topology is known.
func (p *Prefix) State(ctx context.Context, key string) (epoch uint64, state State) {
	if p.t.only != nil {
		return p.StateAt("")
	}
	epoch = p.t.epoch.Load()
	client, err := p.t.cn.Node(ctx, key)
	if err != nil {
		return epoch, Down
	}
	opt, err := optionsOf(client)
	if err != nil {
		return epoch, Down
	}
	return p.StateAt(opt.Addr)
}

// Everywhere returns the least that is known of a node: Down if one of them is Down,
// or if none is known. While the epoch lasts, no node that StateAt knows then was
// Down in between: one that begins to tell, or to refuse on a Cluster, ends it.
func (p *Prefix) Everywhere() (epoch uint64, state State) {
	if p.t.only != nil {
		return p.StateAt("")
	}
	epoch = p.t.epoch.Load()
	state = Down
	for _, n := range *p.t.nodes.Load() {
		switch s := p.stateOf(n); {
		case s == Down:
			return epoch, Down
		case state != Refused:
			state = s
		}
	}
	return epoch, state
}

// StateAt is State for who knows which node of the Cluster is going to be asked:
// addr is that of its go-redis client's Options. Elsewhere addr means nothing.
func (p *Prefix) StateAt(addr string) (epoch uint64, state State) {
	epoch = p.t.epoch.Load() // before the state, which is withdrawn before the epoch ends
	n := p.t.only
	if n == nil {
		if n = (*p.t.nodes.Load())[addr]; n == nil {
			return epoch, Down
		}
	}
	return epoch, p.stateOf(n)
}

func (p *Prefix) stateOf(n *node) State {
	switch stands := n.stands.Load(); {
	case stands > p.place:
		return Standing
	case stands == refusing:
		return Refused
	}
	return Down
}
