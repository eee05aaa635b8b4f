package children

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

const signalStop, signalContinue = syscall.SIGSTOP, syscall.SIGCONT

// dieWithParent lets the kernel kill cmd when the thread that starts it ends, and
// keeps the terminal's Ctrl-C from it.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

// stopped reports whether all threads of a process have stopped, which they do a
// moment after they were told to (proc_pid_stat(5)).
func stopped(pid int) (bool, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err == nil && len(threads) == 0 {
		err = os.ErrProcessDone
	}
	if err != nil {
		return false, fmt.Errorf("process %d: %w", pid, err)
	}
	for _, thread := range threads {
		stat, err := os.ReadFile(thread)
		if err != nil {
			return false, err
		}
		// The state follows the name, which is in parentheses and may hold some.
		_, state, _ := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" "))
		if !bytes.HasPrefix(state, []byte("T")) {
			return false, nil
		}
	}
	return true, nil
}
