package conn

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/breaker"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/resolve"
)

// Check connects and asks what is there: it fails if nothing answers, if the
// answer is not Redis', if the password is wrong, and if the server is of
// another kind than the endpoint says. Its errors say what to do. It passes the
// breaker, which learns from the outcome.
func (c *Client) Check(ctx context.Context) error {
	switch {
	case c.reason != nil:
		return c.reason
	case ctx == nil:
		return errNilContext
	}
	ctx = breaker.Bypass(Once(ctx))
	if c.ep().Proxy != "" {
		return c.checkProxy(ctx)
	}
	reply, err := c.Do(ctx, "role").Slice()
	switch {
	case err == nil:
		if err := c.judge(reply); err != nil {
			return err
		}
		return c.checkMode(ctx)
	case lacksRole(err):
		err = c.Ping(ctx).Err()
	}
	if err == nil || redis.IsPermissionError(err) {
		return nil // it answers, and the password was accepted
	}
	if unknownCommand(err) && c.sentinelAnswers(ctx) {
		err = ErrSentinel
	}
	return c.explain(err)
}

// checkProxy reads a key: a proxy answers PING by itself, and does not know ROLE.
func (c *Client) checkProxy(ctx context.Context) error {
	err := c.Get(ctx, cmp.Or(c.ep().Namespace, "redisha")+":check").Err()
	if errors.Is(err, redis.Nil) || redis.IsPermissionError(err) || redis.HasErrorPrefix(err, "WRONGTYPE") {
		return nil
	}
	return c.explain(err)
}

// lacksRole reports whether the server answers but does not tell its role: an
// ACL without it, or a server that does not know the command, such as miniredis.
func lacksRole(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply) && (redis.IsPermissionError(err) || strings.Contains(strings.ToLower(reply.Error()), "unknown command `role`") ||
		strings.Contains(strings.ToLower(reply.Error()), "unknown command 'role'"))
}

func unknownCommand(err error) bool {
	return strings.Contains(strings.ToLower(err.Error()), "unknown command")
}

// What Check finds in place of a primary.
var (
	ErrSentinel = errors.New("this is a Sentinel, not a Redis server: use redis+sentinel://host:26379/<master name>, or the address of the server itself")
	ErrReplica  = errors.New("this is a replica, which refuses writes")

	errClusterNode = errors.New("this is a node of a Cluster, which refuses keys that other nodes hold: use redis+cluster://host:port")
)

// checkMode asks whether the server is a node of a Cluster that the endpoint does
// not expect.
func (c *Client) checkMode(ctx context.Context) error {
	if c.cluster {
		return nil
	}
	reply, err := c.Do(ctx, "hello").Result()
	if err == nil && helloField(reply, "mode") == "cluster" {
		return c.explain(errClusterNode)
	}
	return nil
}

// judge compares the answer to ROLE with what the endpoint says.
// https://redis.io/docs/latest/commands/role/
func (c *Client) judge(reply []any) error {
	if len(reply) == 0 {
		return nil
	}
	switch word, _ := reply[0].(string); word {
	case "sentinel":
		if c.topology != endpoint.Sentinel {
			return c.explain(ErrSentinel)
		}
	case "slave":
		return c.explain(replicaOf(reply))
	}
	return nil
}

// sentinelAnswers asks anew for ROLE, with the database left alone: a Sentinel
// does not know SELECT, so that connections to another database than 0 fail.
func (c *Client) sentinelAnswers(ctx context.Context) bool {
	rdb, ok := c.UniversalClient.(*redis.Client)
	if !ok {
		return false
	}
	opt := *rdb.Options()
	opt.DB, opt.MinIdleConns, opt.OnConnect = 0, 0, nil
	probe := redis.NewClient(&opt)
	defer probe.Close()
	reply, err := probe.Do(ctx, "role").Slice()
	return err == nil && len(reply) > 0 && reply[0] == "sentinel"
}

// explain adds to an error of connecting where that was and what to do.
func (c *Client) explain(err error) error {
	if err == nil {
		return nil
	}
	if !c.own { // whose address is not known here, and is in most errors
		if hint := hintFor(err); hint != "" {
			return fmt.Errorf("%w: %s", err, hint)
		}
		return err
	}
	where := c.ep().String()
	if f := c.follower; f != nil && unconnected(err) {
		if addr := f.resolver.State().Primary; addr != "" && isNetwork(err) {
			return fmt.Errorf("%s: the primary is said to be %s, which cannot be reached (is a failover under way?): %w", where, addr, err)
		}
	}
	if hint := hintFor(err); hint != "" {
		return fmt.Errorf("%s: %w: %s", where, err, hint)
	}
	return fmt.Errorf("%s: %w", where, err)
}

// hintFor says what a failure to connect mostly comes from; "" where the error
// says it all.
func hintFor(err error) string {
	msg := err.Error()
	var (
		dns       *net.DNSError
		unknownCA x509.UnknownAuthorityError
		wrongName x509.HostnameError
		invalid   x509.CertificateInvalidError
		notTLS    tls.RecordHeaderError
	)
	switch {
	case errors.Is(err, resolve.ErrNotSentinel):
		return "name the Sentinels, or use redis://host:port for that server alone"
	case strings.Contains(msg, "unknown command 'cluster'"), strings.Contains(msg, "unknown command `cluster`"):
		return "this is no Redis server that knows Cluster, perhaps a Sentinel: use redis+sentinel://host:26379/<master name>, or the addresses of the nodes"
	case strings.Contains(msg, "cluster support disabled"):
		return "the server is no node of a Cluster: use redis://host:port"
	case redis.IsAuthError(err), strings.Contains(msg, "called without any password"):
		return "authentication failed: check user and password"
	case errors.As(err, &unknownCA):
		return "the server's certificate is of an unknown CA: name it with tls_ca"
	case errors.As(err, &wrongName):
		return "the server's certificate is for another name: set tls_server_name"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the server's certificate has expired, or a clock is wrong"
	case errors.As(err, &notTLS):
		return "the server does not speak TLS there: use redis:// or the TLS port"
	case strings.Contains(msg, "can't parse"), strings.Contains(msg, "invalid reply"):
		return "the answer is not Redis': are host and port right, and does the port want TLS (rediss://)?"
	case errors.Is(err, redis.ErrPoolTimeout):
		return "all connections are in use"
	case errors.As(err, &dns):
		return "is the host name right?"
	case strings.Contains(msg, "connection refused"), strings.Contains(msg, "no such file"):
		return "does the server run, and are host and port (or the socket's path) right?"
	case strings.Contains(msg, "DB index is out of range"):
		return "the server has fewer databases: see its setting `databases`"
	case strings.Contains(msg, "remote error: tls"):
		return "the server refused the TLS handshake: does it want a client certificate, of a CA that it knows (tls_cert, tls_key)?"
	case strings.Contains(msg, "tls handshake"):
		return "nothing answers in TLS there: are host and port right, and does the port speak TLS (else redis://)? For Sentinels without TLS set sentinel_tls=false"
	case strings.Contains(msg, "i/o timeout"), errors.Is(err, context.DeadlineExceeded):
		return "nothing answers there: are host and port right, does a firewall drop packets, or does the port want TLS (rediss://)?"
	case strings.HasSuffix(msg, "EOF"), strings.Contains(msg, "connection reset"):
		return "the server hung up: is it Redis (proxies such as twemproxy are not supported), and does the port want TLS (rediss://)? Or a client certificate (tls_cert, tls_key)?"
	case msg == "no upstream host":
		return "the proxy has no healthy server for the key"
	}
	return ""
}
