package redistest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// serverVariable names the program to run.
const serverVariable = "REDISHA_TEST_REDIS_SERVER"

// ErrNoServer says that there is no redis-server to run.
var ErrNoServer = errors.New("no redis-server on PATH: install Redis 7.0 or later, or set " + serverVariable + " to the program")

// Program returns the path of redis-server, from REDISHA_TEST_REDIS_SERVER or
// else PATH. It returns ErrNoServer if there is none on PATH, and another error
// if the variable names what cannot be run.
func Program() (string, error) {
	if named := os.Getenv(serverVariable); named != "" {
		path, err := exec.LookPath(named)
		if err != nil {
			return "", fmt.Errorf("%s is %q, want a program: %w", serverVariable, named, err)
		}
		return path, nil
	}
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return "", ErrNoServer
	}
	return path, nil
}

// programVersion returns the version that redis-server --version tells.
var programVersion = sync.OnceValues(func() (string, error) {
	program, err := Program()
	if err != nil {
		return "", err
	}
	out, err := exec.Command(program, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", program, err)
	}
	return parseVersion(string(out))
})

var versionPattern = regexp.MustCompile(`\bv=(\d+(?:\.\d+)*)`)

func parseVersion(out string) (string, error) {
	found := versionPattern.FindStringSubmatch(out)
	if found == nil {
		return "", fmt.Errorf("no v=<version> in %q", strings.TrimSpace(out))
	}
	return found[1], nil
}

// olderThan compares versions number by number; a missing one is 0.
func olderThan(version, than string) bool {
	a, b := strings.Split(version, "."), strings.Split(than, ".")
	number := func(parts []string, i int) int {
		if i >= len(parts) {
			return 0
		}
		n, _ := strconv.Atoi(parts[i]) // what is no number is 0
		return n
	}
	for i := range max(len(a), len(b)) {
		if x, y := number(a, i), number(b, i); x != y {
			return x < y
		}
	}
	return false
}
