package resolve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
)

// A SentinelConfig says which Sentinels to watch, and for what.
type SentinelConfig struct {
	Addrs      []string // host:port of Sentinels; at least one
	MasterName string   // required

	// Username and Password are those of the Sentinels; an empty password means
	// none. Credentials goes before them and is asked at each new connection.
	Username, Password string
	Credentials        func(context.Context) (user, password string, err error)

	// Dial makes a connection, TLS included; required. Names are looked up by
	// each call of it.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// MapAddr returns what to dial for an address that Sentinels announce,
	// behind NAT for example, as host:port. Nil means the address itself.
	MapAddr func(addr string) string

	// Fallback is a host:port to take for the primary while no Sentinel has ever
	// answered: as soon as all configured ones have failed, or after a second. It
	// may be empty.
	Fallback string

	Replicas bool         // list replicas as well
	Name     string       // of the connections; empty for none
	Logger   *slog.Logger // nil: slog.Default()
}

func (c SentinelConfig) validate() error {
	if c.MasterName == "" {
		return errors.New("resolve: MasterName is empty: name the group that the Sentinels monitor, as in redis+sentinel://host:26379/mymaster")
	}
	if c.Fallback != "" {
		if err := checkAddr("Fallback", c.Fallback); err != nil {
			return err
		}
	}
	return checkServers(c.Addrs, c.Dial != nil)
}

func checkServers(addrs []string, dial bool) error {
	if len(addrs) == 0 {
		return errors.New("resolve: Addrs is empty: name at least one server as host:port")
	}
	for i, addr := range addrs {
		if err := checkAddr(fmt.Sprintf("Addrs[%d]", i), addr); err != nil {
			return err
		}
	}
	if !dial {
		return errors.New("resolve: Dial is nil: pass a function that makes connections")
	}
	return nil
}

func checkAddr(field, addr string) error {
	if host, port, err := net.SplitHostPort(addr); err != nil || host == "" || port == "" {
		return fmt.Errorf("resolve: %s is %q, want host:port", field, addr)
	}
	return nil
}
