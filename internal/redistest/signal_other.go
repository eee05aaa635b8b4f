//go:build !unix

package redistest

import (
	"errors"
	"os"
	"syscall"
)

// No server runs here; these let the tests compile.
const signalStop, signalContinue = syscall.Signal(0), syscall.Signal(0)

func lock(*os.File) error { return errors.ErrUnsupported }
