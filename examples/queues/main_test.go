package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/broker"
	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/redisha"
	"github.com/redisha/redisha/redisha/redishatest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

var send = broker.NewTask[string]("mail.send", broker.TaskConfig{Queue: "mail", MaxAttempts: 1, Retention: time.Hour})

// at makes the server at url that of the environment, and returns its clients.
func at(t *testing.T, url string) *redisha.Clients {
	t.Helper()
	for _, name := range []string{"CACHE_DEFAULT", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "CELERY_ONCE_REDIS_URL", "REDISHA_CACHE_URL", "REDISHA_LOCKS_URL", "REDIS_URL"} {
		t.Setenv(name, "")
	}
	t.Setenv("REDISHA_BROKER_URL", url)
	t.Setenv("REDISHA_RESULTS_URL", url)
	cfg, err := redisha.FromEnv(redisha.Broker, redisha.Results)
	require.NoError(t, err)
	clients, err := redisha.Open(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, clients.Close()) })
	return clients
}

// fails lets a worker fail every task that is ready.
func fails(t *testing.T, clients *redisha.Clients, n int) {
	t.Helper()
	worker, err := broker.NewWorker(clients.Broker, broker.WorkerConfig{Results: clients.Results})
	require.NoError(t, err)
	failed := make(chan bool, n)
	send.Handle(worker, func(context.Context, string) error { failed <- true; return errors.New("no such host") })
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- worker.Run(ctx) }()
	for range n {
		<-failed
	}
	stop()
	require.NoError(t, <-ended)
}

func does(t *testing.T, args ...string) string {
	t.Helper()
	var out strings.Builder
	require.NoError(t, run(t.Context(), args, &out))
	return out.String()
}

func night(t *testing.T, url string) {
	clients, ctx := at(t, url), t.Context()
	var ids []string
	for _, to := range []string{"ada", "grace", "alan"} {
		id, err := send.Publish(ctx, clients.Broker, to)
		require.NoError(t, err)
		ids = append(ids, id)
	}
	fails(t, clients, 3)
	later, err := send.Publish(ctx, clients.Broker, "later", broker.After(time.Hour))
	require.NoError(t, err)

	require.Regexp(t, `(?m)^mail +0 +0 +1 +0 +3 +0s +0s +0 *$`, does(t))
	dead := does(t, "tasks", "mail", "dead")
	require.Equal(t, 3, strings.Count(dead, "mail.send"))
	require.Contains(t, dead, "no such host")
	require.Contains(t, dead, `"grace"`)
	require.Equal(t, 1, strings.Count(does(t, "tasks", "mail", "dead", "1"), "\n"))
	require.Contains(t, does(t, "find", "mail", later), "delayed")

	require.Equal(t, "paused\n", does(t, "pause", "mail"))
	require.Contains(t, does(t), "paused")
	require.Equal(t, "1 dead letters retried\n", does(t, "retry", "mail", ids[0]))
	require.Equal(t, "0 dead letters deleted\n", does(t, "delete", "mail", "-older", "1h"))
	require.Equal(t, "2 dead letters deleted\n", does(t, "delete", "mail", "-task", "mail.send", "-reason", "exhausted"))
	require.Contains(t, does(t, "tasks", "mail", "ready"), `"ada"`)
	require.Equal(t, "resumed\n", does(t, "resume", "mail"))
	require.Equal(t, later+" is cancelled\n", does(t, "cancel", "mail", later))
	r, err := clients.Results.Wait(ctx, later)
	require.NoError(t, err)
	require.Equal(t, "cancelled", r.State.String())
	require.Contains(t, does(t, "cancel", "mail", ids[0]), "will be cancelled")
	require.Equal(t, "1 tasks purged\n", does(t, "purge", "mail", "-yes"))
	require.Regexp(t, `(?m)^mail +0 +0 +0 +0 +0 `, does(t))

	for _, wrong := range [][]string{{"mail"}, {"look", "mail"}, {"purge", "mail"}, {"delete", "mail"}, {"retry", "mail", "-reason", "odd"}, {"show", "none"}, {"tasks", "mail"}, {"drop", "mail"}} {
		require.Error(t, run(ctx, wrong, &strings.Builder{}), wrong)
	}
}

func TestANightOnTheEmbeddedServer(t *testing.T) {
	srv, err := redishatest.Start()
	require.NoError(t, err)
	defer srv.Close()
	night(t, string(srv.URL()))
}

func TestANightOnAServer(t *testing.T) {
	url := redistest.New(t, redistest.Config{}).URL()
	night(t, url)
	require.Contains(t, does(t, "show", "mail"), "KiB") // which needs MEMORY USAGE of streams
}
