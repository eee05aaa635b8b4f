package endpoint

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRedact(t *testing.T) {
	for _, c := range []struct{ name, raw, want string }{
		{"empty", "", ""},
		{"nothing to hide", "redis://h:6379/1?pool_size=5", "redis://h:6379/1?pool_size=5"},
		{"bare", "h:6379/1", "h:6379/1"},
		{"space around", " redis://h\n", "redis://h"},
		{"IPv6", "redis://[::1]:7/0", "redis://[::1]:7/0"},
		{"password", "redis://:pw@h", "redis://:xxxxx@h"},
		{"user and password", "redis://u:pw@h", "redis://u:xxxxx@h"},
		{"what may be a password", "redis://pw@h", "redis://xxxxx@h"},
		{"odd user", "redis://a=b:pw@h", "redis://xxxxx@h"},
		{"@ in the password", "redis://u:p@w@h", "redis://u:xxxxx@h"},
		{"separators in the password", "redis://u:p/w@h", "redis://xxxxx"},
		{"Sentinel password", "redis+sentinel://s/m?sentinel_password=pw&pool_size=1", "redis+sentinel://s/m?sentinel_password=xxxxx&pool_size=1"},
		{"unknown parameter", "redis://h?password=pw", "redis://h?password=xxxxx"},
		{"unknown parameter of odd name", "redis://h?a:b=pw", "redis://h?xxxxx"},
		{"parameter without a value", "redis://h?skip_verify", "redis://h?skip_verify"},
		{"parameter badly encoded", "redis://h?client_name=%zz", "redis://h?client_name=xxxxx"},
		{"a parameter inside another", "redis://h?client_name=a,password=pw", "redis://h?client_name=xxxxx"},
		{"key file, where the key itself may stand", "rediss://h?tls_key=MIIE&ssl_keyfile=MIIE", "rediss://h?tls_key=xxxxx&ssl_keyfile=xxxxx"},
		{"address and path in parameters", "redis+sentinel://s/m?fallback_primary=[::1]:1&tls_ca=/ca.pem", "redis+sentinel://s/m?fallback_primary=[::1]:1&tls_ca=/ca.pem"},
		{"spaces and braces in parameters", "redis://h?client_name=my%20app&namespace={a}", "redis://h?client_name=my%20app&namespace={a}"},
		{"a certificate with its key instead of their file", "rediss://h?tls_cert=-----BEGIN%20PRIVATE%20KEY-----MIIE", "rediss://h?tls_cert=xxxxx"},
		{"fragment", "redis-sentinel://s/0#m", "redis-sentinel://s/0#m"},
		{"odd fragment", "redis-sentinel://s/0#password=pw", "redis-sentinel://s/0#xxxxx"},
		{"odd path", "redis://h/password=pw/1", "redis://h/xxxxx/1"},
		{"port that is no port", "redis://user:pw", "redis://xxxxx"},
		{"another client's text", "h:6379,password=pw,ssl=True", "h:6379,xxxxx,xxxxx"},
		{"a command line", "redis-cli -h h -a pw", "xxxxx"},
		{"quotes", `"redis://:pw@h"`, "xxxxx"},
		{"several parts", "sentinel://:pw@s1/2;sentinel://:pw@s2", "sentinel://:xxxxx@s1/2;sentinel://:xxxxx@s2"},
		{"a semicolon in the password", "redis://:12;34@h", "xxxxx"},
		{"another system", "amqp://guest:guest@h:5672//", "amqp://guest:xxxxx@h:5672//"},
		{"long", "redis://" + strings.Repeat("a", 5000), "xxxxx"},
		{"long name", "redis://h/" + strings.Repeat("a", 200), "redis://h/xxxxx"},
	} {
		t.Run(c.name, func(t *testing.T) { require.Equal(t, c.want, Redact(c.raw)) })
	}
}
