package redisha

import (
	"cmp"
	"fmt"
	"log/slog"
	"time"

	"github.com/redisha/redisha/compress"
	"github.com/redisha/redisha/internal/endpoint"
)

// settings are what the roles' own configurations have in common. What the URL
// says goes first, then what the program says for the role, then for all.
type settings struct {
	ep     endpoint.Endpoint
	common Config
}

// apply sets the fields that a role has; nil for one that it does not have.
func (s settings) apply(r Role, namespace *string, logger **slog.Logger, timeout, ttl *time.Duration, c *compress.Config) error {
	*namespace = cmp.Or(s.ep.Namespace, *namespace, s.common.Namespace)
	*logger = cmp.Or(*logger, s.common.Logger)
	*timeout = cmp.Or(*timeout, s.common.CloseTimeout)
	if ttl == nil && s.ep.TTL != 0 {
		return fmt.Errorf("%s: ttl=%s: nothing there has a default TTL: leave it out", r, s.ep.TTL)
	}
	if ttl != nil {
		*ttl = cmp.Or(s.ep.TTL, *ttl)
	}
	switch {
	case s.ep.Compression == "" && s.ep.CompressionMinSize == 0:
	case c == nil:
		return fmt.Errorf("%s: compression: nothing there is compressed: leave compression and compression_min_size out", r)
	case s.ep.Compression == "none":
		c.MinSize = -1
	case s.ep.CompressionMinSize != 0:
		c.MinSize = s.ep.CompressionMinSize
	default:
		c.MinSize = max(c.MinSize, 0) // compression=deflate, where the program turned it off
	}
	return nil
}
