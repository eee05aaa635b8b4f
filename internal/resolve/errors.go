package resolve

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
)

var (
	// ErrUnknownMaster says that Sentinels answer and do not know the master
	// name. The error that wraps it lists the names they do know.
	ErrUnknownMaster = errors.New("the Sentinels do not know this master name")

	// ErrSentinelAuth says that a Sentinel refuses user or password, wants one,
	// or forbids the user to ask for the primary.
	ErrSentinelAuth = errors.New("a Sentinel refuses access: check sentinel_username and sentinel_password, which are not those of the data nodes")

	// ErrNotSentinel says that what answers is a data node.
	ErrNotSentinel = errors.New("not a Sentinel but a data node: Sentinels usually listen on port 26379")

	// ErrNoSentinel says that no Sentinel has answered.
	ErrNoSentinel = errors.New("no Sentinel answers")

	// errBadMap says that MapAddr has returned what is no address.
	errBadMap = errors.New("MapAddr returns no host:port")

	// ErrNoPrimary says that none of a fixed list of servers is a primary.
	ErrNoPrimary = errors.New("no server says that it is a primary")
)

// A replyError is an error that a server replied. It is a redis.Error.
type replyError string

func (e replyError) Error() string { return string(e) }

// RedisError marks it as what go-redis takes for a reply.
func (replyError) RedisError() {}

func (e replyError) code() string {
	code, _, _ := strings.Cut(string(e), " ")
	return code
}

// refused reports whether the reply is about access: no password, a wrong one,
// or one that is not enough.
func (e replyError) refused() bool {
	switch e.code() {
	case "NOAUTH", "WRONGPASS", "NOPERM":
		return true
	}
	return strings.HasPrefix(string(e), "ERR invalid password") || strings.HasPrefix(string(e), "ERR AUTH ")
}

func (e replyError) unknownCommand() bool { return strings.HasPrefix(string(e), "ERR unknown command") }

// withoutSecret removes a secret which a server has quoted.
func (e replyError) withoutSecret(secret string) replyError {
	if secret == "" || !strings.Contains(string(e), secret) {
		return e
	}
	return replyError(e.code() + " (the server's message quotes the password and is not shown)")
}

// explained adds to an error what experience knows of its cause, if that came
// before a first answer.
func explained(err error) error {
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &record):
		return fmt.Errorf("%w (does it speak TLS at all?)", err)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("it closed the connection (does it want TLS?): %w", err)
	}
	return err
}

// A reason is why there is no primary.
type reason struct {
	message string
	causes  []error
}

func (r *reason) Error() string   { return r.message }
func (r *reason) Unwrap() []error { return r.causes }

// because joins what the servers said, in their order, under one kind.
func because(kind error, what, detail string, said []saying) error {
	r := &reason{causes: []error{kind}}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %v%s", what, kind, detail)
	for i, s := range said {
		sep := "; "
		if i == 0 {
			sep = " ("
		}
		fmt.Fprintf(&b, "%s%s: %v", sep, s.addr, s.err)
		r.causes = append(r.causes, s.err)
	}
	if len(said) > 0 {
		b.WriteByte(')')
	}
	r.message = b.String()
	return r
}

// A saying is what became of the last question to a server.
type saying struct {
	addr string
	err  error
}
