// Package redistest runs real Redis servers as processes, for tests and
// benchmarks: each on a free port of 127.0.0.1, with its files in a directory
// of its own, ended and removed with what started it.
//
// In a test, [New] starts a server for one test, [Shared] one for all tests of
// a package, which [Main] ends. Elsewhere, [Start] does it. [NewReplica] adds a
// replica, [NewSentinels] and [NewCluster] start what fails over, one at a time in
// a process, and [NewProxy] does harm to connections. The program is redis-server
// on PATH, or what REDISHA_TEST_REDIS_SERVER names; Valkey's server will do.
// Where there is none, or under -short, tests are skipped with the reason; under
// REDISHA_TEST_REQUIRE=1 they fail if there is none.
//
// No server outlives the process that started it, also if that is killed: on
// Linux the kernel ends it. The directory of a killed process is removed by the
// next that starts a server.
//
// The package imports nothing of this module.
package redistest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/redis/go-redis/v9"
)

// A Config says how a server is set up. The zero Config is a plain server.
type Config struct {
	// Password is that of the default user. Defaults to none.
	Password string

	// Users are further ACL users, each a name and its rules:
	// "alice on >secret ~cache:* +@read". Defaults to none.
	Users []string

	// TLS makes the server speak TLS alone. Defaults to nil: plain TCP.
	TLS *TLS

	// UnixSocket also serves a socket, which Server.Socket names.
	UnixSocket bool

	// Persist keeps the data over Kill and Restart, by an append-only file
	// that is synced with each write. By default nothing is kept.
	Persist bool

	// Lines are further lines of redis.conf; a later one wins.
	Lines []string
}

// A Server is a redis-server process, or after Kill the place of one. Its
// methods are safe for concurrent use.
type Server struct {
	plan
	port  int
	held  *reservation
	inner *reservation // of plan.bothProtocols, else nil
	dir   *directory
	certs *Certs // nil without any TLS

	mu        sync.Mutex
	process   *process // nil when it does not run
	disturbed bool     // Kill or Pause was called
	version   string
	stopped   bool
	lastLog   string // of the process that was killed last
}

// A plan is a Config and what a topology adds to it.
type plan struct {
	cfg      Config
	sentinel bool

	ca    *authority // signs the certificates; nil: a new one
	peers *authority // signs the certificate for connections to other servers, and is trusted; nil: ca

	// bothProtocols also serves what cfg.TLS does not say, TLS or plain TCP, on
	// a second port: Sentinels speak to each other as they do to the data nodes.
	bothProtocols bool
}

// Start starts a server and waits until it answers, for 15 s at most or until
// ctx is done. Stop ends it.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	return start(ctx, plan{cfg: cfg})
}

// start starts a server with further lines of redis.conf, which those of its
// Config overrule.
func start(ctx context.Context, p plan, lines ...string) (*Server, error) {
	if ctx == nil {
		return nil, errors.New("redistest: start: nil context: pass context.Background() or the test's")
	}
	var err error
	for range 10 { // another program may take the port first
		var s *Server
		s, err = prepare(p)
		if err != nil {
			return nil, fmt.Errorf("redistest: start: %w", err)
		}
		if err = s.configure(lines...); err == nil {
			err = s.launch(ctx)
		}
		if err == nil {
			return s, nil
		}
		err = errors.Join(fmt.Errorf("redistest: start: %w", err), s.Stop())
		if !errors.Is(err, errPortTaken) {
			break
		}
	}
	return nil, err
}

// prepare makes what a server needs before its configuration is written.
func prepare(p plan) (s *Server, err error) {
	s = &Server{plan: p}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Stop())
		}
	}()
	if s.held, err = reservePort(); err != nil {
		return s, err
	}
	s.port = s.held.port
	if p.bothProtocols {
		if s.inner, err = reservePort(); err != nil {
			return s, err
		}
	}
	if s.dir, err = newDirectory(); err != nil {
		return s, err
	}
	if tls := p.cfg.TLS; tls != nil || p.bothProtocols {
		s.certs, err = cmp.Or(tls, &TLS{}).write(s.dir.path, p.ca, p.peers)
	}
	return s, err
}

func (s *Server) configFile() string { return filepath.Join(s.dir.path, "redis.conf") }

// configure writes redis.conf, with lines before those of the Config.
func (s *Server) configure(lines ...string) error {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("bind 127.0.0.1")
	line("protected-mode no")
	line("daemonize no")
	line("dir %q", s.dir.path)
	line("port %d", s.portFor(false))
	if s.certs != nil {
		line("tls-port %d", s.portFor(true))
		line("tls-cert-file %q", s.certs.ServerCertFile)
		line("tls-key-file %q", s.certs.ServerKeyFile)
		line("tls-client-cert-file %q", s.certs.peerCertFile)
		line("tls-client-key-file %q", s.certs.peerKeyFile)
		line("tls-ca-cert-file %q", s.certs.trustFile)
		required := s.cfg.TLS != nil && s.cfg.TLS.RequireClientCert
		line("tls-auth-clients %s", map[bool]string{true: "yes", false: "no"}[required])
	}
	if !s.sentinel {
		line(`save ""`)
		if s.cfg.Persist {
			line("appendonly yes")
			line("appendfsync always")
		} else {
			line("appendonly no")
		}
		// Replicas that come at the same time share a copy, which is made at once.
		line("repl-diskless-sync no")
		line("rdb-del-sync-files yes")
	}
	if s.cfg.UnixSocket {
		line("unixsocket %q", s.socket())
		line("unixsocketperm 700")
	}
	if s.cfg.Password != "" {
		line("requirepass %q", s.cfg.Password)
	}
	for _, user := range s.cfg.Users {
		line("user %s", user)
	}
	for _, l := range slices.Concat(lines, s.cfg.Lines) {
		line("%s", l)
	}
	return os.WriteFile(s.configFile(), []byte(b.String()), 0o600)
}

// portFor returns the port on which the server speaks TLS or plain TCP, or 0.
func (s *Server) portFor(tls bool) int {
	switch {
	case tls == (s.cfg.TLS != nil):
		return s.port
	case s.inner != nil:
		return s.inner.port
	}
	return 0
}

// Addr returns host and port.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// Port returns the port.
func (s *Server) Port() int { return s.port }

// Socket returns the path of the unix socket, or "" without Config.UnixSocket.
func (s *Server) Socket() string {
	if !s.cfg.UnixSocket {
		return ""
	}
	return s.socket()
}

func (s *Server) socket() string { return filepath.Join(s.dir.path, "s") }

// Certs returns the certificates of a server with TLS, else nil.
func (s *Server) Certs() *Certs {
	if s.cfg.TLS == nil {
		return nil
	}
	return s.certs
}

// Version returns what the server tells as its version, as "7.0.15".
func (s *Server) Version() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.version
}

// AtLeast reports whether the server's version is this one, as "7.4", or a later one.
func (s *Server) AtLeast(version string) bool { return !olderThan(s.Version(), version) }

// URL returns redis:// or rediss:// with the default user's password and
// database 0. For TLS it does not name the CA.
func (s *Server) URL() string {
	u := url.URL{Scheme: "redis", Host: s.Addr(), Path: "/0"}
	if s.cfg.TLS != nil {
		u.Scheme = "rediss"
	}
	if s.cfg.Password != "" {
		u.User = url.UserPassword("", s.cfg.Password)
	}
	return u.String()
}

// Options returns options for a client that is the default user. The caller
// owns the result.
func (s *Server) Options() *redis.Options {
	opts := &redis.Options{Addr: s.Addr(), Password: s.cfg.Password, ContextTimeoutEnabled: true}
	if s.cfg.TLS != nil {
		opts.TLSConfig = s.certs.ClientConfig()
	}
	return opts
}

// Log returns what the server has printed, at most the last 64 KiB. After
// Restart it begins anew.
func (s *Server) Log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return s.lastLog
	}
	return s.process.log.String()
}

// Kill ends the process at once (SIGKILL), as a crash does. Restart starts it
// again. It does nothing if the process does not run.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disturbed = true
	s.killLocked()
}

func (s *Server) killLocked() {
	if s.process == nil {
		return
	}
	s.process.kill()
	s.lastLog = s.process.log.String()
	s.process = nil
}

// Restart starts the process again, on the same port and with the same files,
// after it has killed it if it runs. Data is kept with Config.Persist alone.
func (s *Server) Restart(ctx context.Context) error {
	if ctx == nil {
		return errors.New("redistest: restart: nil context: pass context.Background() or the test's")
	}
	s.Kill()
	if err := s.launch(ctx); err != nil {
		return fmt.Errorf("redistest: restart: %w", err)
	}
	return nil
}

// Pause stops the process (SIGSTOP): its connections stay open and nothing
// answers.
func (s *Server) Pause() error { return s.signal("pause", signalStop) }

// Continue lets the process go on after Pause.
func (s *Server) Continue() error { return s.signal("continue", signalContinue) }

func (s *Server) signal(what string, sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return fmt.Errorf("redistest: %s: the server does not run", what)
	}
	if err := s.process.signal(sig); err != nil {
		return fmt.Errorf("redistest: %s: %w", what, err)
	}
	s.disturbed = true
	return nil
}

// Stop ends the process for good, waits for its end, and removes its files. It
// may be called twice.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	s.killLocked()
	var errs []error
	if s.dir != nil {
		errs = append(errs, s.dir.remove())
	}
	for _, port := range []*reservation{s.held, s.inner} {
		if port != nil {
			errs = append(errs, port.release())
		}
	}
	s.dir, s.held, s.inner = nil, nil, nil
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("redistest: stop: %w", err)
	}
	return nil
}
