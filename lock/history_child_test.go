//go:build unix

package lock

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// childVariable makes a process of this test binary a child of a scene: one that
// acquires locks and tells what comes of it, to be stopped and killed.
const childVariable = "REDISHA_TEST_LOCK_CHILD"

// childTTL is the TTL of a child's leases.
func (s setting) childTTL() time.Duration {
	if s.quorum() {
		return quorumTTL
	}
	return time.Second
}

// resumed is how long a process that goes on after a stop may take to see that
// its lease has ended.
const resumed = 2 * time.Second

// A childSetup is what a child is told.
type childSetup struct {
	Name  string
	Addrs []string // one, or those of a quorum
	TTL   time.Duration
	Keys  []string
	Seed  uint64
}

// A childEvent is what a child tells. Instants are Unix nanoseconds.
type childEvent struct {
	What       string // "waits", "holds", "sees" (that its lease is alive), "idles"
	Key        string `json:",omitempty"`
	Fence      int64  `json:",omitempty"`
	Called, At int64
}

const (
	childWaits = "waits"
	childHolds = "holds"
	childSees  = "sees"
	childIdles = "idles"
)

func init() {
	if setup := os.Getenv(childVariable); setup != "" {
		if err := beChild(setup); err != nil {
			fmt.Fprintln(os.Stderr, "child of a lock test:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// beChild is the child's main function. It ends with its standard input, which
// the parent holds.
func beChild(text string) error {
	var setup childSetup
	if err := json.Unmarshal([]byte(text), &setup); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	var clients []*redis.Client
	for _, addr := range setup.Addrs {
		rdb := redis.NewClient(&redis.Options{Addr: addr, ReadTimeout: time.Second, MaxRetries: -1, ContextTimeoutEnabled: true})
		defer func() { _ = rdb.Close() }()
		clients = append(clients, rdb)
	}
	set := setting{nodes: len(clients)}
	c, err := set.newClient(set.universal(clients), Config{Holder: setup.Name, TTL: setup.TTL, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	tell := func(e childEvent) { _ = out.Encode(e) } // an error says that the parent is gone, and so does stdin
	random := rand.New(rand.NewPCG(setup.Seed, 0))
	for ctx.Err() == nil {
		key := setup.Keys[random.IntN(len(setup.Keys))]
		called := time.Now().UnixNano()
		tell(childEvent{What: childWaits, At: called})
		l, err := c.Acquire(ctx, key, MaxWait(between(random, time.Millisecond, 3*time.Second)))
		if err != nil {
			sleepIn(ctx, time.Millisecond)
			continue
		}
		granted := time.Now()
		tell(childEvent{What: childHolds, Key: key, Fence: l.Token(), Called: called, At: granted.UnixNano()})
		d := between(random, time.Millisecond, 100*time.Millisecond)
		if random.IntN(10) == 0 {
			d = setup.TTL + between(random, 0, setup.TTL/2)
		}
		for time.Since(granted) < d {
			at := time.Now().UnixNano()
			if l.Context().Err() != nil {
				break
			}
			tell(childEvent{What: childSees, At: at})
			sleepIn(l.Context(), 2*time.Millisecond)
		}
		tell(childEvent{What: childIdles, At: time.Now().UnixNano()})
		_ = l.Release(ctx)
	}
	return c.Close()
}

// A child is the place of a child process, seen from its parent.
type child struct {
	*scene
	name string

	fate sync.Mutex // held by who stops, kills or replaces the process

	mu      sync.Mutex
	process *childProcess
	born    int
}

type childProcess struct {
	cmd   *exec.Cmd
	stdin io.Closer
	state atomic.Value  // what it told last, as string: waits, holds or idles
	read  chan struct{} // closed when it has told all
}

func (s *scene) newChild(i int) *child {
	c := &child{scene: s, name: fmt.Sprintf("child-%d", i)}
	s.t.Cleanup(func() {
		if p := c.get(); p != nil {
			_ = p.kill()
		}
	})
	if err := c.start(); err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (c *child) get() *childProcess {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.process
}

// start starts a process. It is in a group of its own: should this one be killed
// while the child is stopped, the kernel ends the orphaned group (setpgid(2)).
func (c *child) start() error {
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	c.born++
	setup := childSetup{Name: c.name, TTL: c.childTTL(), Keys: c.keys, Seed: c.seed + uint64(c.born)}
	for _, srv := range c.servers {
		setup.Addrs = append(setup.Addrs, srv.Addr())
	}
	text, err := json.Marshal(setup)
	if err != nil {
		return err
	}
	p := &childProcess{cmd: exec.Command(binary), read: make(chan struct{})}
	p.state.Store(childIdles)
	p.cmd.Env = append(os.Environ(), childVariable+"="+string(text))
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	name := fmt.Sprintf("%s.%d", c.name, c.born)
	go func() {
		defer close(p.read)
		c.listen(p, name, stdout)
	}()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.process = p
	return nil
}

// listen records what a process tells.
func (c *child) listen(p *childProcess, name string, stdout io.Reader) {
	var x *holding
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		var e childEvent
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			return // it was killed while it wrote
		}
		switch e.What {
		case childHolds:
			x = &holding{key: e.Key, client: name, process: name, fence: e.Fence, ttl: c.childTTL(), called: c.h.at(e.Called), granted: c.h.at(e.At)}
			x.seen = x.granted
			c.h.hold(x)
			c.acquired.Add(1)
			c.count("child: acquired")
			c.resource.write(x.key, x.fence)
		case childSees:
			c.h.saw(x, c.h.at(e.At))
			c.resource.write(x.key, x.fence)
			continue
		}
		p.state.Store(e.What)
	}
}

// at converts an instant of another process. Both read the machine's wall clock,
// which must not be set in between.
func (h *history) at(unixNano int64) time.Duration {
	now := time.Now()
	return now.Sub(h.start) - now.Round(0).Sub(time.Unix(0, unixNano))
}

// await waits until the process is in the state, or long enough.
func (c *child) await(p *childProcess, state string) bool {
	for range 500 {
		if p.state.Load() == state {
			return true
		}
		if c.disturbing.Err() != nil {
			return false
		}
		time.Sleep(time.Millisecond)
	}
	return false
}

// stop stops the process in that state for d.
func (c *child) stop(state string, d time.Duration) error {
	c.fate.Lock()
	defer c.fate.Unlock()
	p := c.get()
	if !c.await(p, state) {
		return nil
	}
	from := c.h.now()
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	sleepIn(c.disturbing, d)
	err := p.cmd.Process.Signal(syscall.SIGCONT)
	c.h.stopped(fmt.Sprintf("%s.%d", c.name, c.born), from, c.h.now()+resumed)
	return err
}

// replace kills the process in that state and starts another.
func (c *child) replace(state string) error {
	c.fate.Lock()
	defer c.fate.Unlock()
	p := c.get()
	if !c.await(p, state) {
		return nil
	}
	if err := p.kill(); err != nil {
		return err
	}
	return c.start()
}

// kill ends the process at once.
func (p *childProcess) kill() error {
	_ = p.cmd.Process.Kill() // an error says that it has ended
	<-p.read
	_ = p.cmd.Wait()
	return nil
}

// end lets the process end by itself, which must not have failed.
func (c *child) end() {
	c.fate.Lock()
	defer c.fate.Unlock()
	p := c.get()
	_ = p.stdin.Close()
	<-p.read
	if err := p.cmd.Wait(); err != nil {
		c.t.Errorf("%s: %v", c.name, err)
	}
}
