package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// childVariable makes this program one that wants locks, as it says.
const childVariable = "REDISHA_BENCH_LOCK_CHILD"

// An order says what a child does: it wants all keys at once, tells when it has
// asked for them, and holds what it gets until it is killed.
type order struct {
	Side string
	Addr string
	TTL  time.Duration
	Keys []string
	Hold bool // nobody has them: it tells when it holds them all
}

func isChild() bool { return os.Getenv(childVariable) != "" }

// child is the main function of a child. It ends with its standard input, if
// nobody has killed it before.
func child() {
	redis.SetLogger(quiet{})
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		os.Exit(1)
	}()
	var o order
	err := json.Unmarshal([]byte(os.Getenv(childVariable)), &o)
	if err == nil {
		err = o.obey(func() { fmt.Println(ready) })
	}
	fmt.Println(err)
	os.Exit(1)
}

// quiet keeps go-redis from telling of dials that fail: an error tells it.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// ready is what a child says when it has done what it was told.
const ready = "ready"

func (o order) obey(tell func()) error {
	s, err := sideNamed(o.Side)
	if err != nil {
		return err
	}
	l, err := s.open(settings{addr: o.Addr, ttl: o.TTL})
	if err != nil {
		return err
	}
	ctx := context.Background()
	if h, err := l.try(ctx, fmt.Sprintf("child-%d", os.Getpid())); err != nil { // connects
		return err
	} else if err := h.Release(ctx); err != nil {
		return err
	}
	var running sync.WaitGroup
	errs := make([]error, len(o.Keys))
	for i, key := range o.Keys {
		running.Go(func() { _, errs[i] = l.acquire(ctx, key) })
	}
	if !o.Hold {
		tell()
	}
	running.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if o.Hold {
		tell()
	}
	select {}
}

// A process is a child that was started. It dies with this process.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
}

// startChild starts a child and waits until it is ready.
func startChild(ctx context.Context, o order) (*process, error) {
	binary, err := os.Executable()
	if err != nil {
		return nil, err
	}
	what, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(binary), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), childVariable+"="+string(what))
	p.cmd.Stderr = os.Stderr
	dieWithParent(p.cmd)
	if _, err := p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	started, said := make(chan error, 1), make(chan string, 1)
	go func() {
		runtime.LockOSThread() // Linux ends the child with the thread that started it
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		line, _ := bufio.NewReader(stdout).ReadString('\n')
		said <- line
		_ = p.cmd.Wait()
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start a child: %w", err)
	}
	select {
	case line := <-said:
		if line != ready+"\n" {
			p.kill()
			return nil, fmt.Errorf("a child that was to want %v of %s says %q", o.Keys, o.Side, line)
		}
		return p, nil
	case <-ctx.Done():
		p.kill()
		return nil, context.Cause(ctx)
	}
}

// kill ends the process at once and waits for its end. A stopped one dies, too.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // an error says that it has ended
	<-p.done
}

// stop stops the process, and returns when it has: its connections stay open, and
// it does nothing.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(signalStop); err != nil {
		return err
	}
	for end := time.Now().Add(stopLimit); ; time.Sleep(time.Millisecond) {
		ok, err := stopped(p.cmd.Process.Pid)
		if ok || err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("process %d does not stop within %s", p.cmd.Process.Pid, stopLimit)
		}
	}
}

// stopLimit is how long a process may take to stop.
const stopLimit = 10 * time.Second
