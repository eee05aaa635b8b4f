package redistest

import (
	"fmt"
	"net"
	"os/exec"
	"syscall"
)

// dieWithParent lets the kernel kill cmd when the thread that starts it ends, and
// keeps the terminal's Ctrl-C from it, which is for the tests to answer.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

// holdName holds a name among all processes of this machine until it is closed
// or this process ends: an abstract unix socket, which leaves no file.
func holdName(name string) (net.Listener, error) {
	return net.Listen("unix", fmt.Sprintf("@redisha-redistest-%s", name))
}
