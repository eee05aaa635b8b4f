//go:build !linux

package main

import (
	"os/exec"
	"syscall"
	"time"
)

// signalStop is SIGSTOP of systems other than Linux, where Go has that name on
// some alone.
const signalStop = syscall.Signal(17)

// dieWithParent does nothing: a child ends with its standard input, unless it is
// stopped.
func dieWithParent(*exec.Cmd) {}

// stopped waits, since here nothing tells that a process has stopped.
func stopped(int) (bool, error) {
	time.Sleep(100 * time.Millisecond)
	return true, nil
}
