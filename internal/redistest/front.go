package redistest

import (
	"net"
	"strconv"
)

// A front is how the data nodes of a fixture are known: by the ports of their
// own, or by those of the proxies in front of them.
type front struct {
	nodes   []*Server
	proxies map[*Server]*Proxy // empty without proxies
}

// newFront returns what is to be closed even after an error.
func newFront(nodes []*Server, proxied bool) (front, error) {
	f := front{nodes: nodes, proxies: make(map[*Server]*Proxy)}
	for _, s := range nodes {
		if !proxied {
			break
		}
		p, err := StartProxy(s.Addr())
		if err != nil {
			return f, err
		}
		f.proxies[s] = p
	}
	return f, nil
}

// port returns the port by which a node is known.
func (f front) port(s *Server) int {
	if p := f.proxies[s]; p != nil {
		return p.port()
	}
	return s.port
}

// nodeAt returns the node at an address, its own or its proxy's, or nil.
func (f front) nodeAt(addr string) *Server {
	_, text, _ := net.SplitHostPort(addr)
	port, _ := strconv.Atoi(text)
	for _, s := range f.nodes {
		if port == s.port || port == f.port(s) {
			return s
		}
	}
	return nil
}
