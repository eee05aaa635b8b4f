//go:build !linux && !darwin

package harness

import "time"

// processCPU is not known here.
func processCPU() (used time.Duration, ok bool) { return 0, false }
