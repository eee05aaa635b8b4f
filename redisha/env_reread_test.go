package redisha

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// A secretFile is a file as containers get their secrets.
type secretFile struct {
	t    *testing.T
	path string
}

func newSecretFile(t *testing.T, content string) secretFile {
	t.Helper()
	f := secretFile{t, filepath.Join(t.TempDir(), "secret")}
	f.write(content)
	return f
}

// write replaces the file.
func (f secretFile) write(content string) {
	f.t.Helper()
	require.NoError(f.t, os.WriteFile(f.path+".new", []byte(content), 0o600))
	require.NoError(f.t, os.Rename(f.path+".new", f.path))
}

// logged is a logger that keeps what it is told.
func logged() (*slog.Logger, *bytes.Buffer) {
	var buf bytes.Buffer
	return slog.New(slog.NewTextHandler(&buf, nil)), &buf
}

// loginsFor returns the functions of a role that vars configure.
func loginsFor(t *testing.T, vars env, r Role, log *slog.Logger) (data, sentinels func() login) {
	t.Helper()
	cfg, err := FromLookup(vars.lookup, r)
	require.NoError(t, err)
	ep := cfg.of(r)
	forData, forSentinels := ep.logins(r, ep.from().endpoints[0], log)
	asked := func(f func(context.Context) (string, string, error)) func() login {
		if f == nil {
			return nil
		}
		return func() login {
			user, password, err := f(t.Context())
			require.NoError(t, err)
			return login{user, password}
		}
	}
	return asked(forData), asked(forSentinels)
}

func TestEachConnectionGetsWhatTheFilesHold(t *testing.T) {
	log, lines := logged()
	url := newSecretFile(t, "redis+sentinel://app:one@s1,s2/main\n")
	sentinel := newSecretFile(t, "first\n")
	vars := env{"REDISHA_BROKER_URL_FILE": url.path, "REDISHA_BROKER_SENTINEL_PASSWORD_FILE": sentinel.path, "REDISHA_BROKER_SENTINEL_USERNAME": "watcher"}
	data, sentinels := loginsFor(t, vars, Broker, log)
	vars["REDISHA_BROKER_SENTINEL_USERNAME"] = "other" // is none of the files
	require.Equal(t, login{"app", "one"}, data())
	require.Equal(t, login{"watcher", "first"}, sentinels())

	url.write("redis+sentinel://app2:two@s1,s2/main")
	require.Equal(t, login{"app2", "two"}, data())
	require.Equal(t, login{"watcher", "first"}, sentinels())
	sentinel.write("second")
	require.Equal(t, login{"app2", "two"}, data())
	require.Equal(t, login{"watcher", "second"}, sentinels())
	url.write("redis+sentinel://app2:three@elsewhere/main?pool_size=7")
	require.Equal(t, login{"app2", "three"}, data(), "what else has changed waits for the next start")
	require.Empty(t, lines.String())
}

func TestAFileThatIsOfNoUseChangesNothing(t *testing.T) {
	log, lines := logged()
	file := newSecretFile(t, "redis://app:s3cret@h:6379")
	vars := env{"REDIS_URL_FILE": file.path}
	data, sentinels := loginsFor(t, vars, Results, log)
	require.NotNil(t, sentinels)
	for _, half := range []string{
		"", " \n", "r", "redis:/", "redis://app", "redis://app:hunter2", "redis://:12", "redis://app:hunter2@", "redis://app:hunter2@h:port",
		"amqp://app:hunter2@h", "redis://app:hunter2@h?pool_size=hunter2", "hunter2 \x00\xff", "redis://h:6379", strings.Repeat("hunter2", 1000),
	} {
		lines.Reset()
		file.write(half)
		if half == "redis://app:hunter2@" { // a URL of localhost: whole as far as the password goes
			require.Equal(t, login{"app", "hunter2"}, data(), "%q", half)
		} else {
			require.Equal(t, login{"app", "s3cret"}, data(), "%q", half)
			require.Equal(t, login{"app", "s3cret"}, data(), "%q", half)
			require.Equal(t, 1, strings.Count(lines.String(), "level=WARN"), "once, not for each connection: %q", half)
			require.Contains(t, lines.String(), "role=results variable=REDIS_URL_FILE")
		}
		require.NotContains(t, lines.String(), "hunter2")
		require.NotContains(t, lines.String(), "s3cret")
		file.write("redis://app:s3cret@h:6379")
		require.Equal(t, login{"app", "s3cret"}, data())
	}
	lines.Reset()
	require.NoError(t, os.Remove(file.path))
	require.Equal(t, login{"app", "s3cret"}, data())
	require.Contains(t, lines.String(), "no such file")
	file.write("redis://app:new@h:6379")
	require.Equal(t, login{"app", "new"}, data())
	require.NoError(t, os.Remove(file.path))
	require.Equal(t, login{"app", "new"}, data(), "the last good one")
	require.Equal(t, 2, strings.Count(lines.String(), "level=WARN"), "a second failure is a new one")
}

func TestAPasswordMayComeLater(t *testing.T) {
	log, lines := logged()
	file := newSecretFile(t, "redis://h")
	data, _ := loginsFor(t, env{"REDISHA_CACHE_URL_FILE": file.path}, Cache, log)
	require.Equal(t, login{}, data())
	file.write("redis://:s3cret@h")
	require.Equal(t, login{"", "s3cret"}, data())
	require.Empty(t, lines.String())
}

func TestNoFileIsReadWhereNoneIsNeeded(t *testing.T) {
	log, _ := logged()
	data, sentinels := loginsFor(t, env{"REDISHA_CACHE_URL": "redis://:s3cret@h"}, Cache, log)
	require.Nil(t, data)
	require.Nil(t, sentinels)

	file := newSecretFile(t, "redis://app:one@h")
	cfg, err := FromLookup(env{"REDISHA_CACHE_URL_FILE": file.path}.lookup, Cache)
	require.NoError(t, err)
	own := errors.New("the program's")
	cfg.Cache.Credentials = func(context.Context) (string, string, error) { return "", "", own }
	give, _ := cfg.Cache.logins(Cache, cfg.Cache.from().endpoints[0], log)
	_, _, err = give(t.Context())
	require.ErrorIs(t, err, own, "goes before the file")

	cfg.Cache.Credentials = nil
	cfg.Cache.URL = "redis://elsewhere"
	give, _ = cfg.Cache.logins(Cache, cfg.Cache.from().endpoints[0], log)
	require.Nil(t, give, "the file is about another server")
}

func TestManyConnectionsReadAFileAtOnce(t *testing.T) {
	log, _ := logged()
	file := newSecretFile(t, "redis://app:p0@h")
	data, _ := loginsFor(t, env{"REDISHA_CACHE_URL_FILE": file.path}, Cache, log)
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for range 8 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if l := data(); l.user != "app" || !strings.HasPrefix(l.password, "p") {
					t.Errorf("got %v", l)
					return
				}
			}
		})
	}
	for i := range 100 {
		file.write("redis://app:p" + strings.Repeat("x", i) + "@h")
	}
	close(stop)
	readers.Wait()
}
