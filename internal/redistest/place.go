package redistest

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Ports lie below those that systems give out by themselves (from 32768 on
// Linux), and so do the ports of a Cluster's bus, which are 10,000 higher: a
// server that is down finds its port free again.
const firstPort, lastPort = 12000, 21999

// A reservation keeps a port from other test processes, also while the server
// is down.
type reservation struct {
	port int
	name io.Closer
}

func reservePort() (*reservation, error) {
	var last error
	for range 200 {
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		name, err := holdName(strconv.Itoa(port))
		if err != nil {
			last = err
			continue // another test has it
		}
		r := &reservation{port: port}
		if name != nil {
			r.name = name
		}
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return r, l.Close()
		}
		last = err
		if err := r.release(); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("no free port between %d and %d: %w", firstPort, lastPort, last)
}

func (r *reservation) release() error {
	if r.name == nil {
		return nil
	}
	return r.name.Close()
}

// A directory holds a server's files. Its lock says that its process lives.
type directory struct {
	path string
	lock *os.File
}

const directoryPattern = "redisha-redistest-*"

// newDirectory makes a directory, and removes those of processes that were
// killed. The path is short enough for a unix socket in it.
func newDirectory() (*directory, error) {
	removeAbandoned()
	path, err := os.MkdirTemp("", directoryPattern)
	if err != nil {
		return nil, err
	}
	d := &directory{path: path}
	if d.lock, err = os.Create(filepath.Join(path, "lock")); err != nil {
		return nil, errors.Join(err, d.remove())
	}
	if err := lock(d.lock); err != nil {
		return nil, errors.Join(err, d.remove())
	}
	return d, nil
}

func (d *directory) remove() error {
	err := os.RemoveAll(d.path)
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	return err
}

// removeAbandoned removes directories whose lock nobody holds. What is younger
// than a minute may be about to be locked.
func removeAbandoned() {
	paths, _ := filepath.Glob(filepath.Join(os.TempDir(), directoryPattern))
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil || time.Since(info.ModTime()) < time.Minute {
			continue
		}
		f, err := os.OpenFile(filepath.Join(path, "lock"), os.O_RDWR, 0)
		if errors.Is(err, os.ErrNotExist) {
			_ = os.RemoveAll(path)
			continue
		}
		if err != nil {
			continue // another user's
		}
		if lock(f) == nil {
			_ = os.RemoveAll(path)
		}
		_ = f.Close()
	}
}
