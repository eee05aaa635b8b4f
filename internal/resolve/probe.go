package resolve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// access is how to get a connection.
type access struct {
	dial               func(ctx context.Context, network, addr string) (net.Conn, error)
	username, password string
	credentials        func(context.Context) (user, password string, err error)
	name               string
}

// connect dials addr, authenticates and names the connection. A server whose
// ACL forbids the name serves all the same.
func (a *access) connect(ctx context.Context, timeout time.Duration, addr string) (*wire, error) {
	dialing, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	user, password := a.username, a.password
	if a.credentials != nil {
		var err error
		if user, password, err = a.credentials(dialing); err != nil {
			return nil, fmt.Errorf("credentials: %w", err)
		}
	}
	nc, err := a.dial(dialing, "tcp", addr)
	if err != nil {
		return nil, err
	}
	w := newWire(ctx, nc)
	if err := a.greet(w, timeout, user, password); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (a *access) greet(w *wire, timeout time.Duration, user, password string) error {
	var commands [][]string
	switch {
	case user != "":
		commands = append(commands, []string{"AUTH", user, password})
	case password != "":
		commands = append(commands, []string{"AUTH", password})
	}
	auth := len(commands) > 0
	if a.name != "" {
		commands = append(commands, []string{"CLIENT", "SETNAME", a.name})
	}
	if len(commands) == 0 {
		return nil
	}
	replies, err := w.ask(timeout, commands...)
	if err != nil || !auth {
		return err
	}
	if reply, ok := replies[0].(replyError); ok && !needless(reply) {
		return &accessError{reply.withoutSecret(password)}
	}
	return nil
}

// needless recognises the answer of a server without a password, which serves
// as well: one of several that are getting passwords one after the other.
func needless(reply replyError) bool {
	return strings.Contains(string(reply), "without any password configured")
}

// An accessError is a refused AUTH.
type accessError struct{ replyError }

func (e *accessError) Unwrap() error { return e.replyError }

// A probe asks one server whenever it is woken, over a connection that it keeps.
type probe[A any] struct {
	addr     string
	access   *access
	wake     chan struct{}
	question func(w *wire, fresh bool) (A, error) // fresh: the first one on this connection

	wire   *wire
	dialed bool // once before
}

// nudge wakes the probe. Woken while it asks, it asks once more.
func (p *probe[A]) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// run asks until ctx is done.
func (p *probe[A]) run(ctx context.Context, report func(answer A, err error)) {
	for {
		select {
		case <-ctx.Done():
			if p.wire != nil {
				p.wire.close()
			}
			return
		case <-p.wake:
			report(p.ask(ctx))
		}
	}
}

// ask asks once, and once more on a new connection if the old one turns out to
// be broken: the server was restarted.
func (p *probe[A]) ask(ctx context.Context) (A, error) {
	kept := p.wire != nil
	answer, err := p.try(ctx)
	if err != nil && kept && !timedOut(err) && ctx.Err() == nil {
		answer, err = p.try(ctx)
	}
	return answer, err
}

func (p *probe[A]) try(ctx context.Context) (answer A, err error) {
	fresh := p.wire == nil
	if fresh {
		timeout := askTimeout
		if p.dialed {
			timeout = redialTimeout
		}
		p.dialed = true
		if p.wire, err = p.access.connect(ctx, timeout, p.addr); err != nil {
			return answer, explained(err)
		}
	}
	answer, err = p.question(p.wire, fresh)
	if err != nil { // also after a refusal: the next connection may have other credentials
		p.wire.close()
		p.wire = nil
	}
	if fresh {
		err = explained(err)
	}
	return answer, err
}

func timedOut(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout() || errors.Is(err, os.ErrDeadlineExceeded)
}
