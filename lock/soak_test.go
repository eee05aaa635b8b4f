//go:build unix

package lock

import (
	"os"
	"testing"
	"time"
)

// TestAHundredThousandLeasesUnderFaults runs by hand, for some ten minutes.
func TestAHundredThousandLeasesUnderFaults(t *testing.T) {
	if os.Getenv("REDISHA_TEST_SOAK") != "1" {
		t.Skip("REDISHA_TEST_SOAK=1 runs it")
	}
	for name, test := range map[string]struct {
		setting
		leases int64
	}{
		"a server that keeps its data": {setting{keeps: true, nodes: 1}, 100_000},
		"a server that loses its data": {setting{nodes: 1}, 50_000},
		"a quorum that keeps its data": {setting{keeps: true, nodes: 5}, 5_000},
		"a quorum that loses its data": {setting{nodes: 5}, 5_000},
	} {
		t.Run(name, func(t *testing.T) { newScene(t, test.setting).run(test.leases, time.Minute) })
	}
}
