package main

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/redisha/redishatest"
)

func Example() {
	server, err := redishatest.Start()
	check(err)
	defer server.Close()
	check(os.Setenv("REDIS_URL", string(server.URL())))
	main()
	// Output: Hello, Grace!
}

func TestTheREADMEQuotesThisProgram(t *testing.T) {
	program, err := os.ReadFile("main.go")
	require.NoError(t, err)
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	require.Contains(t, string(readme), "```go\n"+string(program)+"```\n")
}
