//go:build !linux

package main

import (
	"os/exec"
	"syscall"
)

// signalStop is SIGSTOP of systems other than Linux, where Go has that name on
// some alone.
const signalStop = syscall.Signal(17)

// dieWithParent does nothing: a child ends with its standard input, unless it is
// stopped.
func dieWithParent(*exec.Cmd) {}
