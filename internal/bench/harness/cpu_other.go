//go:build !linux && !darwin

package harness

import "time"

// ProcessCPU is not known here.
func ProcessCPU() (used time.Duration, ok bool) { return 0, false }
