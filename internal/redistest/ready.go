package redistest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// readyWithin is how long a server may take to answer. It takes some 20 ms on
// an idle machine.
const readyWithin = 15 * time.Second

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
	if !s.cfg.Persist {
		_ = os.Remove(filepath.Join(s.dir.path, "dump.rdb")) // of a replication that was under way
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
	if opts.TLSConfig != nil {
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
