package resolve

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A sentinelAnswer is what a Sentinel says. Addresses are those to dial.
type sentinelAnswer struct {
	vote            // its Primary is "" if the Sentinel does not know the name
	names  []string // that it knows instead
	online []string // replicas that are up and linked
	badMap error    // why one of the replicas or Sentinels has no address to dial

	discovered bool // whether it was asked for what follows
	id         string
	others     []peer
}

// A peer is a Sentinel of which another one tells.
type peer struct{ id, addr string }

// An inquiry asks one Sentinel.
type inquiry struct {
	master   string
	replicas bool
	mapAddr  func(string) string

	discovered time.Time // when it was last asked for other Sentinels
}

func (q *inquiry) ask(w *wire, fresh bool) (sentinelAnswer, error) {
	commands := [][]string{
		{"SENTINEL", "GET-MASTER-ADDR-BY-NAME", q.master},
		{"SENTINEL", "MASTER", q.master},
	}
	if q.replicas {
		commands = append(commands, []string{"SENTINEL", "REPLICAS", q.master})
	}
	discover := fresh || time.Since(q.discovered) >= discoverEvery
	if discover {
		commands = append(commands, []string{"SENTINEL", "MYID"}, []string{"SENTINEL", "SENTINELS", q.master})
	}
	replies, err := w.ask(askTimeout, commands...)
	if err != nil {
		return sentinelAnswer{}, err
	}
	a, err := q.primary(replies[0], replies[1])
	if err != nil {
		return sentinelAnswer{}, err
	}
	if a.Primary == "" {
		a.names = knownNames(w)
		return a, nil
	}
	rest := replies[2:]
	if q.replicas {
		a.online, a.badMap = q.online(rest[0], a.Primary)
		rest = rest[1:]
	}
	if discover {
		q.discovered = time.Now()
		a.discovered = true
		a.id, _ = rest[0].(string)
		others, err := q.peers(rest[1])
		a.others, a.badMap = others, cmp.Or(a.badMap, err)
	}
	return a, nil
}

// primary reads the first two replies. The address is that of the first one:
// during a failover the second still tells the old address, though already
// with the new config-epoch.
func (q *inquiry) primary(addr, master any) (a sentinelAnswer, err error) {
	switch addr := addr.(type) {
	case nil:
		return a, nil
	case replyError:
		return a, judge(addr)
	case []any:
		if len(addr) == 2 {
			host, _ := addr[0].(string)
			port, _ := addr[1].(string)
			if a.Primary, err = q.address(host, port); err != nil {
				return sentinelAnswer{}, err
			} else if a.Primary != "" {
				break
			}
		}
		return a, fmt.Errorf("%w: an address of a primary that is none: %.100q", errProtocol, addr)
	default:
		return a, fmt.Errorf("%w to GET-MASTER-ADDR-BY-NAME: %.100q", errProtocol, addr)
	}
	if n, err := strconv.ParseUint(fields(master)["config-epoch"], 10, 64); err == nil {
		a.Epoch, a.HasEpoch = n, true
	}
	return a, nil
}

// judge gives a refusal its kind.
func judge(reply replyError) error {
	switch {
	case reply.refused():
		return &accessError{reply}
	case reply.unknownCommand():
		return &notSentinelError{reply}
	}
	return reply
}

// A notSentinelError is the refusal of a server that knows no Sentinel commands.
type notSentinelError struct{ replyError }

func (e *notSentinelError) Error() string { return "it is not a Sentinel: " + string(e.replyError) }
func (e *notSentinelError) Unwrap() error { return e.replyError }

// address returns what to dial for an announced address; "" if it is none. A
// host name is dialled as such. The error is about what MapAddr returned.
func (q *inquiry) address(host, port string) (string, error) {
	addr := net.JoinHostPort(host, port)
	if !isAddr(addr) {
		return "", nil
	}
	if q.mapAddr == nil {
		return addr, nil
	}
	mapped := q.mapAddr(addr)
	if !isAddr(mapped) {
		return "", fmt.Errorf("%w: it returned %.100q for %q", errBadMap, mapped, addr)
	}
	return mapped, nil
}

// isAddr reports whether addr is a host and a port above 0.
func isAddr(addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	n, portErr := strconv.ParseUint(port, 10, 16)
	return err == nil && host != "" && portErr == nil && n > 0
}

func (q *inquiry) online(reply any, primary string) (online []string, err error) {
	list, _ := reply.([]any)
	for _, item := range list {
		f := fields(item)
		addr, bad := q.address(f["ip"], f["port"])
		err = cmp.Or(err, bad)
		if addr == "" || addr == primary || f["master-link-status"] != "ok" || down(f["flags"]) {
			continue
		}
		online = append(online, addr)
	}
	slices.Sort(online)
	return slices.Compact(online), err
}

func down(flags string) bool {
	for flag := range strings.SplitSeq(flags, ",") {
		switch flag {
		case "s_down", "o_down", "disconnected":
			return true
		}
	}
	return false
}

func (q *inquiry) peers(reply any) (peers []peer, err error) {
	list, _ := reply.([]any)
	for _, item := range list {
		f := fields(item)
		addr, bad := q.address(f["ip"], f["port"])
		err = cmp.Or(err, bad)
		if addr != "" {
			peers = append(peers, peer{f["runid"], addr})
		}
	}
	return peers, err
}

// knownNames asks for the master names that a Sentinel does know. It is for an
// error message only, so that failures do not matter.
func knownNames(w *wire) []string {
	replies, err := w.ask(askTimeout, []string{"SENTINEL", "MASTERS"})
	if err != nil {
		return nil
	}
	list, _ := replies[0].([]any)
	var names []string
	for _, item := range list {
		if name := fields(item)["name"]; name != "" {
			names = append(names, name)
		}
	}
	return names
}

// accessRefused reports whether a Sentinel refused user or password.
func accessRefused(err error) bool {
	var e *accessError
	return errors.As(err, &e)
}

func notSentinel(err error) bool {
	var e *notSentinelError
	return errors.As(err, &e)
}
