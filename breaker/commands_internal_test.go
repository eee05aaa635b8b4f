package breaker

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/redistest"
)

// The lists against what a server says of its commands.
func TestServerAgreesOnItsCommands(t *testing.T) {
	known, err := redistest.New(t, redistest.Config{}).Client(t).Command(t.Context()).Result()
	require.NoError(t, err)
	mayOnlyRead := []string{"bitfield", "georadius", "georadiusbymember", "sort", "pfdebug", "restore-asking"}
	for name := range growing {
		require.Contains(t, known, name)
		require.Less(t, len(name), maxName)
	}
	listed := 0
	for name, info := range known {
		if _, ok := growing[name]; ok {
			require.Subset(t, info.Flags, []string{"write", "denyoom"}, name)
			require.NotContains(t, info.Flags, "blocking", name)
			listed++
		}
	}
	require.Equal(t, len(growing), listed)
	if known["hexpire"] == nil { // 7.0 and 7.2, for which the list is complete
		for name, info := range known {
			if slices.Contains(info.Flags, "denyoom") && !slices.Contains(info.Flags, "blocking") && !slices.Contains(mayOnlyRead, name) {
				require.Contains(t, growing, name)
			}
		}
	}
}
