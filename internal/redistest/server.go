// Package redistest runs real Redis servers as processes, for tests and
// benchmarks: each on a free port of 127.0.0.1, with its files in a directory
// of its own, ended and removed with what started it.
//
// In a test, [New] starts a server for one test, [Shared] one for all tests of
// a package, which [Main] ends. Elsewhere, [Start] does it. The program is
// redis-server on PATH, or what REDISHA_TEST_REDIS_SERVER names; Valkey's server
// will do. Where there is none, or under -short, tests are skipped with the
// reason; under REDISHA_TEST_REQUIRE=1 they fail if there is none.
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
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// readyWithin is how long a server may take to answer. It takes some 20 ms on
// an idle machine.
const readyWithin = 15 * time.Second

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
	cfg      Config
	port     int
	held     *reservation
	dir      *directory
	certs    *Certs
	password string
	sentinel bool

	mu      sync.Mutex
	process *process // nil when it does not run
	version string
	stopped bool
	lastLog string // of the process that was killed last
}

// Start starts a server and waits until it answers, for 15 s at most or until
// ctx is done. Stop ends it.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	return start(ctx, cfg, false)
}

func start(ctx context.Context, cfg Config, sentinel bool) (*Server, error) {
	if ctx == nil {
		return nil, errors.New("redistest: start: nil context: pass context.Background() or the test's")
	}
	var err error
	for range 10 { // another program may take the port first
		var s *Server
		s, err = prepare(cfg, sentinel)
		if err != nil {
			return nil, fmt.Errorf("redistest: start: %w", err)
		}
		if err = s.launch(ctx); err == nil {
			return s, nil
		}
		err = errors.Join(fmt.Errorf("redistest: start: %w", err), s.Stop())
		if !errors.Is(err, errPortTaken) {
			break
		}
	}
	return nil, err
}

// prepare makes all that a server needs, without starting it.
func prepare(cfg Config, sentinel bool) (s *Server, err error) {
	s = &Server{cfg: cfg, password: cfg.Password, sentinel: sentinel}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Stop())
		}
	}()
	if s.held, err = reservePort(); err != nil {
		return s, err
	}
	s.port = s.held.port
	if s.dir, err = newDirectory(); err != nil {
		return s, err
	}
	if cfg.TLS != nil {
		if s.certs, err = cfg.TLS.write(s.dir.path); err != nil {
			return s, err
		}
	}
	return s, os.WriteFile(s.configFile(), []byte(s.config()), 0o600)
}

func (s *Server) configFile() string { return filepath.Join(s.dir.path, "redis.conf") }

func (s *Server) config() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("bind 127.0.0.1")
	line("protected-mode no")
	line("daemonize no")
	line("dir %q", s.dir.path)
	if s.certs == nil {
		line("port %d", s.port)
	} else {
		line("port 0")
		line("tls-port %d", s.port)
		line("tls-cert-file %q", s.certs.ServerCertFile)
		line("tls-key-file %q", s.certs.ServerKeyFile)
		line("tls-ca-cert-file %q", s.certs.CAFile)
		line("tls-auth-clients %s", map[bool]string{true: "yes", false: "no"}[s.cfg.TLS.RequireClientCert])
	}
	if !s.sentinel {
		line(`save ""`)
		if s.cfg.Persist {
			line("appendonly yes")
			line("appendfsync always")
		} else {
			line("appendonly no")
		}
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
	for _, l := range s.cfg.Lines {
		line("%s", l)
	}
	return b.String()
}

// launch starts the process and waits until it answers.
func (s *Server) launch(ctx context.Context) error {
	program, err := Program()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopped:
		return errors.New("the server was stopped for good")
	case s.process != nil:
		return errors.New("it runs already")
	}
	args := []string{s.configFile()}
	if s.sentinel {
		args = append(args, "--sentinel")
	}
	p, err := startProcess(program, args...)
	if err != nil {
		return err
	}
	if s.version, err = s.awaitReady(ctx, p); err != nil {
		p.kill()
		return err
	}
	s.process = p
	return nil
}

var errPortTaken = errors.New("the port is taken")

// awaitReady waits until the process itself answers, and not another program
// that has its port, and returns the version that it tells.
func (s *Server) awaitReady(ctx context.Context, p *process) (version string, err error) {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	opts := s.Options()
	opts.MaxRetries = -1
	opts.DialerRetries = 1
	opts.DialTimeout = time.Second
	opts.PoolSize = 1
	opts.DisableIdentity = true
	if s.certs != nil {
		// The certificate may be wrong on purpose. The process ID will do.
		opts.TLSConfig.InsecureSkipVerify = true
	}
	rdb := redis.NewClient(opts)
	defer func() { _ = rdb.Close() }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		var pid string
		if pid, version, err = s.ask(ctx, rdb); err == nil && pid == strconv.Itoa(p.pid) {
			return version, nil
		}
		if err == nil {
			err = errPortTaken
		}
		if fatal := refused(err); fatal != nil {
			return "", fmt.Errorf("%w\n%s", fatal, p.log.String())
		}
		select {
		case <-p.done:
			if strings.Contains(p.log.String(), "Address already in use") {
				err = errPortTaken
			} else {
				err = fmt.Errorf("redis-server ended: %v", p.err)
			}
			return "", fmt.Errorf("%w\n%s", err, p.log.String())
		case <-ctx.Done():
			return "", fmt.Errorf("no answer within %s (%w), last: %w\n%s", readyWithin, context.Cause(ctx), err, p.log.String())
		case <-tick.C:
		}
	}
}

// ask returns what the server on the port tells of itself.
func (s *Server) ask(ctx context.Context, rdb *redis.Client) (pid, version string, err error) {
	// Whether anyone listens is not asked through rdb, which logs each failure.
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", s.Addr())
	if err != nil {
		return "", "", err
	}
	_ = conn.Close()
	info, err := rdb.Info(ctx, "server").Result()
	if err != nil {
		return "", "", err
	}
	if err := rdb.Ping(ctx).Err(); err != nil { // LOADING is no answer, and INFO gives one then
		return "", "", err
	}
	return infoField(info, "process_id"), cmp.Or(infoField(info, "valkey_version"), infoField(info, "redis_version")), nil
}

// refused returns err if waiting will not mend it: the server answers, and does
// not let the default user in.
func refused(err error) error {
	for _, code := range []string{"NOAUTH", "WRONGPASS", "NOPERM"} {
		if err != nil && strings.Contains(err.Error(), code) {
			return fmt.Errorf("the default user must be let in, with Config.Password: %w", err)
		}
	}
	return nil
}

// infoField returns a field of INFO's reply, or the empty string.
func infoField(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+":"); ok {
			return value
		}
	}
	return ""
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
func (s *Server) Certs() *Certs { return s.certs }

// Version returns what the server tells as its version, as "7.0.15".
func (s *Server) Version() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.version
}

// URL returns redis:// or rediss:// with the default user's password and
// database 0. For TLS it does not name the CA.
func (s *Server) URL() string {
	u := url.URL{Scheme: "redis", Host: s.Addr(), Path: "/0"}
	if s.certs != nil {
		u.Scheme = "rediss"
	}
	if s.password != "" {
		u.User = url.UserPassword("", s.password)
	}
	return u.String()
}

// Options returns options for a client that is the default user. The caller
// owns the result.
func (s *Server) Options() *redis.Options {
	opts := &redis.Options{Addr: s.Addr(), Password: s.password, ContextTimeoutEnabled: true}
	if s.certs != nil {
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
	if s.held != nil {
		errs = append(errs, s.held.release())
	}
	s.dir, s.held = nil, nil
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("redistest: stop: %w", err)
	}
	return nil
}
