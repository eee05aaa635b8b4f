package endpoint

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// parseAddr reads host[:port]; host is a name, an IPv4 address, or an IPv6
// address in brackets, and localhost if empty. Its errors do not quote a port,
// which a host forgotten behind user:password would make of the password.
func parseAddr(s, port string) (string, error) {
	var host, shown string
	if strings.HasPrefix(s, "[") {
		text, rest, ok := strings.Cut(s[1:], "]")
		text, err := url.PathUnescape(text) // the % before a zone is %25
		addr, addrErr := netip.ParseAddr(text)
		if !ok || err != nil || addrErr != nil || !addr.Is6() || addr.Zone() != "" && !isHost(addr.Zone()) {
			return "", errors.New("what stands in brackets is no IPv6 address: write [::1]:6379, or [fe80::1%25eth0]:6379 with a zone")
		}
		host, s = "["+addr.String()+"]", rest
		shown = host
		if s != "" && s[0] != ':' {
			return "", errors.New("behind the bracket of an IPv6 address stands no port: write [::1]:6379")
		}
	} else {
		if strings.Count(s, ":") > 1 {
			return "", errors.New("a host with several colons: write an IPv6 address in brackets, as in [::1]:6379, and credentials as user:password@host")
		}
		host, _, _ = strings.Cut(s, ":")
		s = s[len(host):] // "" or the port with its colon
		if host == "" {
			host = "localhost"
		}
		shown = quote(host)
		if !isHost(host) {
			return "", fmt.Errorf("the host %s is no name: it takes letters, digits, dots, - and _", shown)
		}
	}
	if s != "" {
		var n int
		if !whole(s[1:], 1, &n) || n > 65535 {
			return "", fmt.Errorf("the port of host %s is no number from 1 to 65535: write host:port (and credentials as user:password@host)", shown)
		}
		port = strconv.Itoa(n)
	}
	return host + ":" + port, nil
}

// isHost tells whether s can be the name of a host. Underscores are usual in
// container networks.
func isHost(s string) bool {
	return s != "" && len(s) <= 253 && strings.IndexFunc(s, func(r rune) bool {
		return r > 0x7f || !isAlphanumeric(byte(r)) && !strings.ContainsRune("-._", r)
	}) < 0
}
