package redisha

import (
	"cmp"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/redisha/redisha/compress"
	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/lock"
)

// settings are what the roles' own configurations have in common. What the URL
// says goes first, then what the program says for the role, then for all.
type settings struct {
	ep     endpoint.Endpoint
	shared bool // the URL serves other roles, too: what this one has no use for is theirs
	common Config
}

// apply sets the fields that a role has; nil for one that it does not have.
func (s settings) apply(r Role, namespace *string, logger **slog.Logger, timeout, ttl *time.Duration, c *compress.Config) error {
	*namespace = cmp.Or(s.ep.Namespace, *namespace, s.common.Namespace)
	*logger = cmp.Or(*logger, s.common.Logger)
	*timeout = cmp.Or(*timeout, s.common.CloseTimeout)
	if *namespace != s.common.Namespace && !validNamespace(*namespace) {
		return fmt.Errorf("namespace is %q, want %s", *namespace, namespaceRule)
	}
	if ttl == nil && s.ep.TTL != 0 && !s.shared {
		return fmt.Errorf("ttl=%s: %s has no default TTL: leave it out", s.ep.TTL, r)
	}
	if ttl != nil {
		*ttl = cmp.Or(s.ep.TTL, *ttl)
	}
	for _, param := range []struct{ name, value string }{{"strict", s.ep.Strict}, {"allow_failover_managed", s.ep.AllowFailoverManaged}} {
		if param.value != "" && r != Locks && !s.shared {
			return fmt.Errorf("%s=%s: it is for locks, and not for %s: leave it out", param.name, param.value, r)
		}
	}
	switch {
	case s.ep.Compression == "" && s.ep.CompressionMinSize == 0:
	case c == nil && s.shared:
	case c == nil:
		return fmt.Errorf("compression: %s compresses nothing: leave compression and compression_min_size out", r)
	case s.ep.Compression == "none":
		c.MinSize = -1
	case s.ep.CompressionMinSize != 0:
		c.MinSize = s.ep.CompressionMinSize
	default:
		c.MinSize = max(c.MinSize, 0) // compression=deflate, where the program turned it off
	}
	return nil
}

// policy sets which endpoints locks take.
func (s settings) policy(c *lock.Config) {
	if s.ep.Strict != "" {
		c.Strict = s.ep.Strict == "true"
	}
	if s.ep.AllowFailoverManaged != "" {
		c.AllowFailoverManaged = s.ep.AllowFailoverManaged == "true"
	}
}

// namespaceRule says what validNamespace takes.
const namespaceRule = "letters, digits and _-.:/ only"

func validNamespace(s string) bool {
	for _, c := range s {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (c < '0' || c > '9') && !strings.ContainsRune("_-.:/", c) {
			return false
		}
	}
	return s != ""
}
