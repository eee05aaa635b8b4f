package testserver

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// An Envoy does what Envoy's Redis proxy does in front of servers: it knows the
// commands on its list, sends each to the server that it picks by the key, and
// refuses all others, among them HELLO, SELECT, CLIENT, ROLE, SUBSCRIBE and what
// blocks. Later versions know some of these; it is as strict as the older ones.
// https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/other_protocols/redis#supported-commands
type Envoy struct {
	upstreams []DialFunc
	worded    func(name string, args []string) string

	mu      sync.Mutex
	refused []string // names, each once
	conns   map[net.Conn]struct{}
	closed  bool
	serving sync.WaitGroup
}

// How versions of Envoy refuse a command.
var (
	// EnvoyUnsupported is how versions before 1.34 do, roughly.
	EnvoyUnsupported = func(name string, args []string) string {
		if len(args) == 0 {
			return "invalid request"
		}
		return fmt.Sprintf("unsupported command '%s'", name)
	}

	// EnvoyUnknown is how later ones do.
	EnvoyUnknown = func(name string, args []string) string {
		return fmt.Sprintf("ERR unknown command '%s', with args beginning with: %s", name, strings.Join(args, " "))
	}
)

// NewEnvoy returns a proxy to upstreams, each the Dial of a server or one that
// leads to a real one, which is closed when the test ends. It refuses commands in
// the given words.
func NewEnvoy(tb testing.TB, words func(name string, args []string) string, upstreams ...DialFunc) *Envoy {
	tb.Helper()
	e := &Envoy{upstreams: upstreams, worded: words, conns: make(map[net.Conn]struct{})}
	tb.Cleanup(e.Close)
	return e
}

// Dial connects through memory, whatever the address.
func (e *Envoy) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, refused(network, address)
	}
	near, far := newPipe()
	e.conns[far] = struct{}{}
	e.serving.Go(func() {
		c := &envoyConn{envoy: e, client: far, upstreams: make([]*upstream, len(e.upstreams))}
		c.serve()
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.conns, far)
	})
	return near, nil
}

// Refused returns the names of the commands that were refused, each once.
func (e *Envoy) Refused() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.refused)
}

// Close ends all connections and waits for that.
func (e *Envoy) Close() {
	e.mu.Lock()
	e.closed = true
	for nc := range e.conns {
		_ = nc.Close()
	}
	e.mu.Unlock()
	e.serving.Wait()
}

// envoyConn is the connection of one client.
type envoyConn struct {
	envoy     *Envoy
	client    net.Conn
	upstreams []*upstream // nil where none was needed yet
}

type upstream struct {
	net.Conn
	replies *bufio.Reader
}

func (c *envoyConn) serve() {
	defer func() {
		_ = c.client.Close()
		for _, u := range c.upstreams {
			if u != nil {
				_ = u.Close()
			}
		}
	}()
	requests := bufio.NewReader(c.client)
	for {
		args, err := readRequest(requests)
		if err != nil {
			return
		}
		if _, err := c.client.Write(c.answer(args)); err != nil || strings.EqualFold(args[0], "quit") {
			return
		}
	}
}

// envoySimple are the commands whose first argument is their key. Of the long
// list these are what the roles might use.
var envoySimple = strings.Fields(`append decr decrby dump expire expireat get getdel getex getrange getset hdel hexists hget hgetall hincrby
	hkeys hlen hmget hmset hscan hset hsetnx hvals incr incrby incrbyfloat lindex llen lpop lpush lrange lrem
	ltrim persist pexpire pexpireat psetex pttl publish restore rpop rpush sadd scard set setex setnx setrange
	sismember smembers spop srandmember srem sscan strlen ttl type xack xadd xautoclaim xclaim xdel xlen xpending
	xrange xrevrange xtrim zadd zcard zcount zincrby zpopmax zpopmin zrange zrangebyscore zrank zrem
	zremrangebyscore zscan zscore`)

// answer returns the reply to a request.
func (c *envoyConn) answer(args []string) []byte {
	name := strings.ToLower(args[0])
	switch name {
	case "ping":
		return []byte("+PONG\r\n")
	case "quit":
		return []byte("+OK\r\n")
	case "auth":
		return failure("ERR Client sent AUTH, but no password is set")
	case "time":
		now := time.Now()
		return fmt.Appendf(nil, "*2\r\n$10\r\n%010d\r\n$6\r\n%06d\r\n", now.Unix(), now.Nanosecond()/1000)
	}
	switch {
	case len(args) < 2:
		return c.refuse(args)
	case name == "echo":
		return fmt.Appendf(nil, "$%d\r\n%s\r\n", len(args[1]), args[1])
	case name == "eval", name == "evalsha":
		if len(args) < 4 {
			return failure("wrong number of arguments for '" + args[0] + "' command")
		}
		return c.forward(args[3], args)
	case name == "del", name == "exists", name == "touch", name == "unlink":
		return c.sum(args)
	case name == "mget":
		return c.mget(args[1:])
	case slices.Contains(envoySimple, name):
		return c.forward(args[1], args)
	}
	return c.refuse(args)
}

func (c *envoyConn) refuse(args []string) []byte {
	name := strings.ToLower(args[0])
	c.envoy.mu.Lock()
	defer c.envoy.mu.Unlock()
	if !slices.Contains(c.envoy.refused, name) {
		c.envoy.refused = append(c.envoy.refused, name)
	}
	return failure(c.envoy.worded(args[0], args[1:]))
}

// sum sends a command for each key alone, and adds the replies up.
func (c *envoyConn) sum(args []string) []byte {
	total, failed := 0, 0
	for _, key := range args[1:] {
		reply := c.forward(key, []string{args[0], key})
		n, err := strconv.Atoi(strings.TrimSpace(string(reply[1:])))
		if err != nil {
			failed++
		}
		total += n
	}
	if failed > 0 {
		return failure(fmt.Sprintf("finished with %d error(s)", failed))
	}
	return fmt.Appendf(nil, ":%d\r\n", total)
}

func (c *envoyConn) mget(keys []string) []byte {
	reply := fmt.Appendf(nil, "*%d\r\n", len(keys))
	for _, key := range keys {
		reply = append(reply, c.forward(key, []string{"GET", key})...)
	}
	return reply
}

// forward sends a request to the server of key. Part of a key in braces stands
// for all of it, which Envoy calls hash tagging.
func (c *envoyConn) forward(key string, args []string) []byte {
	if _, rest, ok := strings.Cut(key, "{"); ok {
		if tag, _, ok := strings.Cut(rest, "}"); ok && tag != "" {
			key = tag
		}
	}
	i := int(crc32.ChecksumIEEE([]byte(key)) % uint32(len(c.upstreams))) //nolint:gosec // a few
	if c.upstreams[i] == nil {
		nc, err := c.envoy.upstreams[i](context.Background(), "tcp", "10.0.0.1:6379")
		if err != nil {
			return failure("no upstream host")
		}
		c.upstreams[i] = &upstream{nc, bufio.NewReader(nc)}
	}
	u := c.upstreams[i]
	request := fmt.Appendf(nil, "*%d\r\n", len(args))
	for _, arg := range args {
		request = fmt.Appendf(request, "$%d\r\n%s\r\n", len(arg), arg)
	}
	var reply bytes.Buffer
	_, err := u.Write(request)
	if err == nil {
		err = copyReply(&reply, u.replies)
	}
	if err != nil {
		_ = u.Close()
		c.upstreams[i] = nil
		return failure("upstream failure")
	}
	return reply.Bytes()
}

func failure(message string) []byte { return []byte("-" + message + "\r\n") }

var errRequest = errors.New("not an array of bulk strings")

// readRequest reads what clients send: an array of strings.
func readRequest(r *bufio.Reader) ([]string, error) {
	n, err := readLength(r, '*')
	if err != nil || n < 1 {
		return nil, errRequest
	}
	args := make([]string, n)
	for i := range args {
		size, err := readLength(r, '$')
		if err != nil {
			return nil, err
		}
		arg := make([]byte, size+2)
		if _, err := io.ReadFull(r, arg); err != nil {
			return nil, err
		}
		args[i] = string(arg[:size])
	}
	return args, nil
}

func readLength(r *bufio.Reader, kind byte) (int, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return 0, err
	}
	if line[0] != kind {
		return 0, errRequest
	}
	n, err := strconv.Atoi(strings.TrimSpace(line[1:]))
	if err != nil || n < 0 || n > 64<<20 {
		return 0, errRequest
	}
	return n, nil
}

// copyReply copies one reply as it is.
func copyReply(to *bytes.Buffer, from *bufio.Reader) error {
	line, err := from.ReadString('\n')
	if err != nil {
		return err
	}
	to.WriteString(line)
	if line[0] != '$' && line[0] != '*' {
		return nil
	}
	n, err := strconv.Atoi(strings.TrimSpace(line[1:]))
	if err != nil {
		return err
	}
	if line[0] == '$' && n >= 0 {
		_, err = io.CopyN(to, from, int64(n)+2)
		return err
	}
	for range n { // none for a nil
		if err := copyReply(to, from); err != nil {
			return err
		}
	}
	return nil
}
