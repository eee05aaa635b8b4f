//go:build !linux

package redistest

import (
	"net"
	"os/exec"
)

// dieWithParent does nothing: a server outlives a test process that is killed.
func dieWithParent(*exec.Cmd) {}

// holdName holds nothing: a port may be taken while its server is down.
func holdName(string) (net.Listener, error) { return nil, nil }
