//go:build !linux

package children

import (
	"os/exec"
	"syscall"
	"time"
)

// SIGSTOP and SIGCONT of systems other than Linux, where Go has those names on
// some alone.
const signalStop, signalContinue = syscall.Signal(17), syscall.Signal(19)

// dieWithParent does nothing: a child ends with its standard input, unless it is
// stopped.
func dieWithParent(*exec.Cmd) {}

// stopped waits, since here nothing tells that a process has stopped.
func stopped(int) (bool, error) {
	time.Sleep(100 * time.Millisecond)
	return true, nil
}
