// Package children runs further processes of a benchmark's own program, which
// do some work until they are killed or stopped: what a crash does to others
// cannot be shown within one process.
package children

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"time"
)

// variable holds the order of a process that is a child.
const variable = "REDISHA_BENCH_CHILD"

// Obey runs work if this process is a child, and exits; else it does nothing.
// It belongs at the beginning of main and of TestMain. What work says is heard
// line by line, each before say returns: also by a parent that kills the child
// right after. A child ends with its standard input.
func Obey[Order any](work func(o Order, say func(line string)) error) {
	text, ok := os.LookupEnv(variable)
	if !ok {
		return
	}
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		os.Exit(1)
	}()
	var o Order
	err := json.Unmarshal([]byte(text), &o)
	if err == nil {
		// One write each, which the kernel keeps whole and hands over after the
		// end of this process (pipe(7), PIPE_BUF).
		err = work(o, func(line string) { _, _ = os.Stdout.WriteString(line + "\n") })
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A Process is a child that was started. It dies with this process.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended and all that it said was heard
	err  error         // how it ended; to be read after done
}

// Start starts a child with an order. heard is called with each line that it
// says, from one goroutine, until the child has ended.
func Start(order any, heard func(line string)) (*Process, error) {
	binary, err := os.Executable()
	if err != nil {
		return nil, err
	}
	what, err := json.Marshal(order)
	if err != nil {
		return nil, err
	}
	p := &Process{cmd: exec.Command(binary), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), variable+"="+string(what))
	p.cmd.Stderr = os.Stderr
	dieWithParent(p.cmd)
	if _, err := p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // Linux ends the child with the thread that started it
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			heard(lines.Text())
		}
		p.err = p.cmd.Wait()
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start a child: %w", err)
	}
	return p, nil
}

// Kill ends the process at once (SIGKILL), and returns when all that it said was
// heard. A stopped one dies, too.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // an error says that it has ended
	<-p.done
}

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.done }

// Stop stops the process (SIGSTOP), and returns when it has: its connections stay
// open, and it does nothing.
func (p *Process) Stop() error {
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

// Continue lets a stopped process go on (SIGCONT).
func (p *Process) Continue() error { return p.cmd.Process.Signal(signalContinue) }

// Await waits until what it is given is closed, or the child has ended, which is
// an error.
func (p *Process) Await(ctx context.Context, ready <-chan struct{}) error {
	select {
	case <-ready:
		return nil
	case <-p.done:
		return errors.Join(errors.New("a child ended by itself"), p.err)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
