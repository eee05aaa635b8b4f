//go:build linux || darwin

package harness

import (
	"syscall"
	"time"
)

// ProcessCPU returns the CPU time that this process has used, user and system
// (getrusage(2)).
func ProcessCPU() (used time.Duration, ok bool) {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0, false
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), true
}
