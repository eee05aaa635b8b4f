package redisha

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/endpoint"
)

// env is an environment for FromLookup.
type env map[string]string

func (e env) lookup(variable string) (string, bool) {
	value, ok := e[variable]
	return value, ok
}

func all() []Role { return []Role{Cache, Broker, Results, Locks} }

// urls shows what each role resolved to; "closed" if it did not.
func urls(cfg Config) map[Role]string {
	shown := map[Role]string{}
	for _, r := range cfg.roles() {
		shown[r] = "closed"
		if ep := cfg.of(r); ep.URL != "" {
			shown[r] = ep.from().endpoints[0].String()
		}
	}
	return shown
}

func TestEachRoleTakesItsFirstVariableThatIsSet(t *testing.T) {
	const own, celery, common = "redis://own:1", "redis://celery:2", "redis://common:3"
	for _, c := range []struct {
		role Role
		env  env
		want string
	}{
		{Cache, env{"REDISHA_CACHE_URL": own, "CACHE_DEFAULT": celery, "REDIS_URL": common}, own},
		{Cache, env{"CACHE_DEFAULT": celery, "REDIS_URL": common}, celery},
		{Cache, env{"REDIS_URL": common}, common},
		{Cache, env{"REDISHA_CACHE_URL": "", "CACHE_DEFAULT": "  ", "REDIS_URL": common}, common},
		{Cache, env{"CACHE_DEFAULT": "cache:6380/1"}, "redis://cache:6380/1"},
		{Broker, env{"REDISHA_BROKER_URL": own, "CELERY_BROKER_URL": celery, "REDIS_URL": common}, own},
		{Broker, env{"CELERY_BROKER_URL": celery, "REDIS_URL": common}, celery},
		{Broker, env{"REDIS_URL": common}, common},
		{Results, env{"REDISHA_RESULTS_URL": own, "CELERY_RESULT_BACKEND": celery, "REDIS_URL": common}, own},
		{Results, env{"CELERY_RESULT_BACKEND": celery, "REDIS_URL": common}, celery},
		{Results, env{"REDIS_URL": common}, common},
		{Locks, env{"REDISHA_LOCKS_URL": own, "CELERY_ONCE_REDIS_URL": celery, "REDIS_URL": common}, own},
		{Locks, env{"CELERY_ONCE_REDIS_URL": celery, "REDISHA_BROKER_URL": own}, celery},
		{Locks, env{"REDISHA_BROKER_URL": own, "CELERY_BROKER_URL": celery}, own},
		{Locks, env{"CELERY_BROKER_URL": celery, "REDIS_URL": common}, celery},
		{Locks, env{"REDIS_URL": common}, common},
		{NamedCache("axes"), env{"REDISHA_CACHE_AXES_URL": own, "CACHE_AXES": "h:1/2", "REDIS_URL": common}, own},
		{NamedCache("axes"), env{"CACHE_AXES": "h:1/2", "REDIS_URL": common}, "redis://h:1/2"},
		{NamedCache("user_data"), env{"REDISHA_CACHE_USER_DATA_URL": own}, own},
	} {
		cfg, err := FromLookup(c.env.lookup, c.role)
		require.NoError(t, err, "%s from %v", c.role, c.env)
		require.Equal(t, c.want, urls(cfg)[c.role], "%s from %v", c.role, c.env)
		delete(c.env, "REDIS_URL")
	}
}

func TestADjangoAndCeleryDeploymentWorksAsItIs(t *testing.T) {
	vars := env{
		"CACHE_DEFAULT":                          "redis:6379/0",
		"CELERY_BROKER_URL":                      "sentinel://:data@s1:26379/2;sentinel://s2:26379;sentinel://s3:26379",
		"CELERY_RESULT_BACKEND":                  "sentinel://:data@s1:26379/3;sentinel://s2:26379",
		"CELERY_ONCE_REDIS_URL":                  "redis://fixed:6379/0",
		"REDIS_BROKER_SENTINEL_MASTER":           "brokermaster",
		"REDIS_BROKER_SENTINEL_USERNAME":         "watcher",
		"REDIS_BROKER_SENTINEL_PASSWORD":         "sentinelsecret",
		"REDIS_RESULT_BACKEND_SENTINEL_MASTER":   "resultmaster",
		"REDIS_RESULT_BACKEND_SENTINEL_PASSWORD": "othersecret",
		"CACHE_DIR":                              "/var/cache", // another program's
	}
	cfg, err := FromLookup(vars.lookup, append(all(), NamedCache("axes"))[:4]...)
	require.NoError(t, err)
	broker := cfg.Broker.from().endpoints[0]
	require.Equal(t, endpoint.Sentinel, broker.Topology)
	require.Equal(t, []string{"s1:26379", "s2:26379", "s3:26379"}, broker.Addrs)
	require.Equal(t, "brokermaster", broker.MasterName)
	require.Equal(t, "watcher", broker.SentinelUsername)
	require.Equal(t, "sentinelsecret", broker.SentinelPassword)
	require.Equal(t, "data", broker.Password)
	require.Equal(t, 2, broker.DB)
	results := cfg.Results.from().endpoints[0]
	require.Equal(t, "resultmaster", results.MasterName)
	require.Equal(t, "othersecret", results.SentinelPassword)
	require.Equal(t, "redis://fixed:6379", cfg.Locks.from().endpoints[0].String())
}

func TestLocksThatWouldInheritSentinelsStayClosed(t *testing.T) {
	vars := env{
		"REDISHA_BROKER_URL": "redis+sentinel://s1,s2,s3/mymaster",
		"REDISHA_CACHE_URL":  "redis://cache",
	}
	cfg, err := FromLookup(vars.lookup)
	require.NoError(t, err)
	require.Equal(t, map[Role]string{
		Cache: "redis://cache:6379", Broker: "redis+sentinel://s1:26379,s2:26379,s3:26379/mymaster/0", Results: "closed", Locks: "closed",
	}, urls(cfg))
	require.ErrorContains(t, cfg.closed[Locks], "REDISHA_LOCKS_URL")
	require.ErrorContains(t, cfg.closed[Locks], "REDISHA_BROKER_URL")
	require.ErrorContains(t, cfg.closed[Results], "set REDISHA_RESULTS_URL")

	_, err = FromLookup(vars.lookup, Locks)
	require.ErrorContains(t, err, "redisha: role not configured: locks: REDISHA_BROKER_URL=redis+sentinel://s1,s2,s3/mymaster: locks refuse a Sentinel endpoint")
	require.ErrorContains(t, err, "in REDISHA_LOCKS_URL")
	require.ErrorIs(t, err, ErrNotConfigured)
	require.Len(t, strings.Split(err.Error(), "\n"), 1)

	vars = env{"CELERY_ONCE_REDIS_URL": "sentinel://s1;sentinel://s2", "REDISHA_LOCKS_SENTINEL_MASTER": "m"}
	cfg, err = FromLookup(vars.lookup)
	require.NoError(t, err, "celery-once does not take it either, and a program without locks is not bothered")
	require.ErrorContains(t, cfg.closed[Locks], "REDISHA_LOCKS_URL")

	vars = env{"REDISHA_LOCKS_URL": "redis+sentinel://s1/mymaster"}
	_, err = FromLookup(vars.lookup)
	require.ErrorContains(t, err, "REDISHA_LOCKS_URL=redis+sentinel://s1/mymaster: ")
	require.ErrorContains(t, err, "in REDISHA_LOCKS_URL")
	require.Len(t, strings.Split(err.Error(), "\n"), 1)
}

func TestNamedRolesAreResolvedAndTheOthersStayClosed(t *testing.T) {
	vars := env{"REDIS_URL": "redis://h"}
	cfg, err := FromLookup(vars.lookup, Cache)
	require.NoError(t, err)
	require.Equal(t, map[Role]string{Cache: "redis://h:6379", Broker: "closed", Results: "closed", Locks: "closed"}, urls(cfg))
	require.ErrorContains(t, cfg.closed[Broker], "the program did not name it")

	_, err = FromLookup(env{}.lookup, all()...)
	require.EqualError(t, err, strings.Join([]string{
		"redisha: role not configured: cache: set REDISHA_CACHE_URL",
		"redisha: role not configured: broker: set REDISHA_BROKER_URL",
		"redisha: role not configured: results: set REDISHA_RESULTS_URL",
		"redisha: role not configured: locks: set REDISHA_LOCKS_URL",
	}, "\n"))

	cfg, err = FromLookup(env{}.lookup)
	require.NoError(t, err)
	require.Len(t, cfg.closed, 4)
}

func TestAnotherSystemsURLLeavesTheRoleClosed(t *testing.T) {
	vars := env{
		"CACHE_DEFAULT":         "locmem://",
		"CELERY_BROKER_URL":     "amqp://user:secret@rabbit//",
		"CELERY_RESULT_BACKEND": "db+postgresql://user:secret@db/results",
		"REDIS_URL":             "redis://h",
	}
	cfg, err := FromLookup(vars.lookup)
	require.NoError(t, err)
	require.Equal(t, map[Role]string{Cache: "closed", Broker: "closed", Results: "closed", Locks: "closed"}, urls(cfg))
	require.ErrorContains(t, cfg.closed[Broker], "CELERY_BROKER_URL holds a URL of another system (amqp): set REDISHA_BROKER_URL")
	_, err = FromLookup(vars.lookup, Results)
	require.ErrorContains(t, err, "db+postgresql")
	require.NotContains(t, err.Error(), "secret")

	_, err = FromLookup(env{"REDISHA_BROKER_URL": "amqp://user:secret@rabbit//"}.lookup)
	require.ErrorContains(t, err, "REDISHA_BROKER_URL=", "redisha's own variable can only be a mistake")
	require.NotContains(t, err.Error(), "secret")
}

func TestAllProblemsComeBackALineEach(t *testing.T) {
	vars := env{
		"REDISHA_CACHE_URL":     "redis://u:topsecret@h?pool_size=abc&colour=red",
		"REDIS_URL":             "redis://a,b",
		"CELERY_RESULT_BACKEND": "redis+sentinel://s1,s2",
		"REDISHA_LOCKS_URL":     "cluster://h/16",
	}
	_, err := FromLookup(vars.lookup)
	require.Error(t, err)
	lines := strings.Split(err.Error(), "\n")
	t.Log("\n" + err.Error())
	require.Len(t, lines, 5)
	for i, want := range []string{
		"redisha: REDISHA_CACHE_URL=redis://u:xxxxx@h", "redisha: REDISHA_CACHE_URL=redis://u:xxxxx@h",
		"redisha: REDIS_URL=redis://a,b: ", "redisha: CELERY_RESULT_BACKEND=redis+sentinel://s1,s2: ", "redisha: REDISHA_LOCKS_URL=cluster://h/16: ",
	} {
		require.True(t, strings.HasPrefix(lines[i], want), "%q begins with %q", lines[i], want)
	}
	require.Contains(t, err.Error(), "pool_size")
	require.Contains(t, err.Error(), "colour")
	require.Contains(t, err.Error(), "no master name: set REDISHA_RESULTS_SENTINEL_MASTER")
	require.NotContains(t, err.Error(), "topsecret")
}

func TestAFileMayHoldTheValue(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	vars := env{
		"REDISHA_CACHE_URL_FILE":                 write("cache", "redis://:fromfile@h\n"),
		"CELERY_BROKER_URL_FILE":                 write("broker", "sentinel://s1\n"),
		"REDIS_BROKER_SENTINEL_MASTER":           "m",
		"REDISHA_BROKER_SENTINEL_PASSWORD_FILE":  write("sentinel", "hidden\n"),
		"REDISHA_CACHE_PORTALOCKER_URL_FILE":     write("portalocker", "h:6379/5"),
		"REDISHA_RESULTS_URL_FILE":               "",
		"REDISHA_LOCKS_URL_FILE":                 write("locks", "redis://locks"),
		"CELERY_RESULT_BACKEND":                  "redis://results",
		"REDIS_RESULT_BACKEND_SENTINEL_PASSWORD": "unused: not a Sentinel URL",
	}
	cfg, err := FromLookup(vars.lookup, append(all(), NamedCache("portalocker"))...)
	require.NoError(t, err)
	require.Equal(t, "fromfile", cfg.Cache.from().endpoints[0].Password)
	require.Equal(t, "REDISHA_CACHE_URL_FILE: ", cfg.Cache.variable())
	require.Equal(t, "m", cfg.Broker.from().endpoints[0].MasterName)
	require.Equal(t, "hidden", cfg.Broker.from().endpoints[0].SentinelPassword)
	require.Equal(t, 5, cfg.Caches["portalocker"].from().endpoints[0].DB)
	require.Equal(t, "redis://locks:6379", urls(cfg)[Locks])

	for want, vars := range map[string]env{
		"REDISHA_CACHE_URL and REDISHA_CACHE_URL_FILE are both set: leave one out": {"REDISHA_CACHE_URL": "redis://h", "REDISHA_CACHE_URL_FILE": write("x", "y")},
		"which cannot be read: no such file or directory":                          {"REDISHA_CACHE_URL_FILE": filepath.Join(dir, "absent")},
		"REDIS_URL_FILE is no absolute path (not shown":                            {"REDIS_URL_FILE": "redis://:hunter2@h"},
		"REDISHA_BROKER_SENTINEL_PASSWORD_FILE is no absolute path (not shown":     {"REDISHA_BROKER_URL": "redis+sentinel://s/m", "REDISHA_BROKER_SENTINEL_PASSWORD_FILE": "hunter2"},
		"which is empty: write the value into that file":                           {"REDISHA_CACHE_URL_FILE": write("empty", " \n")},
	} {
		_, err := FromLookup(vars.lookup)
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "hunter2")
	}
}

func TestAPasswordInTheFileOfAURLIsNotTakenForAHost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	for _, password := range []string{
		"sentpw", "sent.pw", "sentpw/7", "sent/pw", "sentpw:x", ":sentpw", ":637", "sentpw?x", "sentpw#x", "sent,pw:1", "sent pw", "sentpw:70000", "sentpw;redis:1", "s%ntpw@",
	} {
		require.NoError(t, os.WriteFile(path, []byte(password+"\n"), 0o600))
		for _, r := range append(all(), NamedCache("axes")) {
			variable := r.variable() + "_FILE"
			_, err := FromLookup(env{variable: path}.lookup, r)
			require.EqualError(t, err, "redisha: "+variable+" is \""+path+"\", which holds neither a URL nor host:port (not shown, since it may be a password): write redis://user:password@host:6379/0 into that file", "%q", password)
		}
		_, err := FromLookup(env{"REDIS_URL_FILE": path}.lookup)
		require.ErrorContains(t, err, "REDIS_URL_FILE is \""+path+"\"")
	}
	for _, url := range []string{"redis://h", "h:6379", "h:6379/5", "h:6379?pool_size=3", "[::1]:6379", "sentinel://s/m;sentinel://t"} {
		require.NoError(t, os.WriteFile(path, []byte(url+"\n"), 0o600))
		_, err := FromLookup(env{"REDISHA_CACHE_URL_FILE": path}.lookup, Cache)
		require.NoError(t, err, "%q", url)
		_, err = FromLookup(env{"REDISHA_CACHE_URL": "h"}.lookup, Cache)
		require.NoError(t, err, "a variable may hold a host alone")
	}
	require.NoError(t, os.WriteFile(path, []byte("rpc"), 0o600))
	_, err := FromLookup(env{"CELERY_RESULT_BACKEND_FILE": path}.lookup)
	require.NoError(t, err, "another system's word")
}

func TestASentinelVariableMustNotContradictTheURL(t *testing.T) {
	vars := env{"REDISHA_BROKER_URL": "redis+sentinel://s1/one?sentinel_password=a", "REDISHA_BROKER_SENTINEL_MASTER": "one"}
	cfg, err := FromLookup(vars.lookup, Broker)
	require.NoError(t, err)
	require.Equal(t, "one", cfg.Broker.from().endpoints[0].MasterName)

	vars["REDISHA_BROKER_SENTINEL_MASTER"] = "two"
	_, err = FromLookup(vars.lookup, Broker)
	require.ErrorContains(t, err, "REDISHA_BROKER_URL and REDISHA_BROKER_SENTINEL_MASTER give the Sentinels' master name differently")
	vars["REDISHA_BROKER_SENTINEL_MASTER"] = ""
	vars["REDISHA_BROKER_SENTINEL_PASSWORD"] = "bsecret"
	_, err = FromLookup(vars.lookup, Broker)
	require.ErrorContains(t, err, "REDISHA_BROKER_URL and REDISHA_BROKER_SENTINEL_PASSWORD give the Sentinels' password differently")
	require.NotContains(t, err.Error(), "bsecret")

	// Two variables, and all mistakes at once, in one order.
	for range 20 {
		_, err = FromLookup(env{
			"REDISHA_BROKER_URL":                    "redis+sentinel://s1,s2/one",
			"REDISHA_BROKER_SENTINEL_MASTER":        "two",
			"REDISHA_BROKER_SENTINEL_PASSWORD":      "asecret",
			"REDIS_BROKER_SENTINEL_PASSWORD":        "bsecret",
			"REDISHA_BROKER_SENTINEL_USERNAME_FILE": "/no/such/file",
		}.lookup, Broker)
		require.EqualError(t, err, strings.Join([]string{
			"redisha: REDISHA_BROKER_URL=redis+sentinel://s1,s2/one: REDISHA_BROKER_URL and REDISHA_BROKER_SENTINEL_MASTER give the Sentinels' master name differently: leave one of them out",
			"redisha: REDISHA_BROKER_URL=redis+sentinel://s1,s2/one: REDISHA_BROKER_SENTINEL_USERNAME_FILE is \"/no/such/file\", which cannot be read: no such file or directory: name a file that holds the value",
			"redisha: REDISHA_BROKER_URL=redis+sentinel://s1,s2/one: REDISHA_BROKER_SENTINEL_PASSWORD and REDIS_BROKER_SENTINEL_PASSWORD give the Sentinels' password differently: leave one of them out",
		}, "\n"))
	}
}

func TestNamedCachesAreFoundInTheEnvironment(t *testing.T) {
	roles, err := namedCaches([]string{
		"REDISHA_CACHE_URL=redis://h", "REDISHA_CACHE_SESSIONS_URL=redis://h", "REDISHA_CACHE_USER_DATA_URL_FILE=/f",
		"REDISHA_CACHE_EMPTY_URL=", "CACHE_AXES=h:1/2", "CACHE_PORTALOCKER=h:1/3", "CACHE_DIR=/tmp", "CACHE_DEFAULT=h:1/1",
		"REDISHA_CACHE_SENTINEL_MASTER=m", "REDISHA_CACHE_SESSIONS_SENTINEL_MASTER=m", "PATH=/bin",
	})
	require.NoError(t, err)
	require.Equal(t, []Role{NamedCache("axes"), NamedCache("portalocker"), NamedCache("sessions"), NamedCache("user_data")}, roles)
	for _, variable := range []string{"REDISHA_CACHE__URL", "REDISHA_CACHE_SENTINEL_URL", "REDISHA_CACHE_A-B_URL", "REDISHA_CACHE_low_URL"} {
		_, err := namedCaches([]string{variable + "=redis://h"})
		require.ErrorContains(t, err, variable+": the cache's name in it is")
	}
	t.Setenv("REDISHA_CACHE_SESSIONS_URL", "redis://sessions")
	cfg, err := FromEnv()
	require.NoError(t, err)
	require.Equal(t, URL("redis://sessions"), cfg.Caches["sessions"].URL)
	cfg, err = FromEnv(NamedCache("sessions"))
	require.NoError(t, err)
	require.Equal(t, "redis://sessions:6379", urls(cfg)[NamedCache("sessions")])
}

func TestRolesAndNamesAreValidated(t *testing.T) {
	for _, r := range []Role{"", "queue", NamedCache(""), NamedCache("Axes"), NamedCache("user-data"), NamedCache("url"), NamedCache("_x")} {
		_, err := FromLookup(env{}.lookup, r)
		require.Error(t, err, "%q", r)
		require.NotErrorIs(t, err, ErrNotConfigured)
	}
	_, err := FromLookup(nil)
	require.ErrorContains(t, err, "nil function")
}

func TestABrokerDoesNotGoThroughAProxy(t *testing.T) {
	_, err := FromLookup(env{"REDISHA_BROKER_URL": "redis://h?proxy=envoy"}.lookup)
	require.ErrorContains(t, err, "a broker cannot work through a proxy")
	cfg, err := FromLookup(env{"REDIS_URL": "redis://h?proxy=envoy"}.lookup)
	require.NoError(t, err)
	require.ErrorContains(t, cfg.closed[Broker], "a broker cannot work through a proxy")
}

func TestNoPasswordIsPrinted(t *testing.T) {
	vars := env{
		"REDISHA_CACHE_URL":                 "redis://user:hunter2@h",
		"REDISHA_BROKER_URL":                "redis+sentinel://:hunter2@s1/m",
		"REDISHA_BROKER_SENTINEL_PASSWORD":  "hunter2",
		"REDISHA_CACHE_SESSIONS_URL":        "unix://:hunter2@/sock",
		"REDISHA_RESULTS_URL":               "redis://h?password=hunter2",
		"REDISHA_RESULTS_SENTINEL_PASSWORD": "hunter2",
	}
	cfg, err := FromLookup(vars.lookup, Cache, Broker, NamedCache("sessions"))
	require.NoError(t, err)
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("configuration", "cfg", cfg, "url", cfg.Cache.URL)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("configuration", "cfg", cfg, "cache", cfg.Cache.URL)
	text, err := json.Marshal(map[string]any{"url": cfg.Cache.URL})
	require.NoError(t, err)
	log.Write(text)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&log, verb+"\n", cfg)
		fmt.Fprintf(&log, verb+"\n", &cfg)
		fmt.Fprintf(&log, verb+"\n", cfg.Cache.URL)
		fmt.Fprintf(&log, verb+"\n", cfg.Broker)
	}
	_, err = FromLookup(vars.lookup, Results)
	require.Error(t, err)
	log.WriteString(err.Error())
	require.False(t, strings.Contains(log.String(), "hunter2"), "it is printed")
	require.False(t, strings.Contains(log.String(), fmt.Sprintf("%x", "hunter2")), "it is printed in hex")
	require.Contains(t, log.String(), "redis://user:xxxxx@h")
	require.Equal(t, "redis://user:hunter2@h", string(cfg.Cache.URL), "a conversion gives it whole")
	require.NoError(t, cfg.Cache.URL.Validate())
	require.Error(t, URL("redis://a,b").Validate())
}

func TestALookupThatSaysNoIsBelieved(t *testing.T) {
	cfg, err := FromLookup(func(variable string) (string, bool) { return "redis://h", variable == "REDISHA_CACHE_URL" }, Cache)
	require.NoError(t, err)
	require.NotNil(t, cfg.Cache)
}
