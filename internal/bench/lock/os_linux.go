package main

import (
	"os/exec"
	"syscall"
)

const signalStop = syscall.SIGSTOP

// dieWithParent lets the kernel kill cmd when the thread that starts it ends, and
// keeps the terminal's Ctrl-C from it.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
