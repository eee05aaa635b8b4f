package result

import (
	"errors"
	"fmt"
	"strings"
)

const maxIDBytes = 255

// ValidateID says what is wrong with the ID of a task: it must have 1 to 255
// bytes, none of them a control character or a brace. (Braces would choose the
// slot of a key on Cluster, and mark the keys of groups.) An ID need not be
// UTF-8.
func ValidateID(id string) error {
	switch {
	case id == "":
		return errors.New("the ID is empty, want 1 to 255 bytes")
	case len(id) > maxIDBytes:
		return fmt.Errorf("the ID has %d bytes, want 1 to %d", len(id), maxIDBytes)
	}
	for i := range len(id) {
		if b := id[i]; b < ' ' || b == 0x7f || b == '{' || b == '}' {
			return fmt.Errorf("the ID has %q at byte %d, want no control characters and no braces", b, i)
		}
	}
	return nil
}

// key is where the record of id is kept, and the channel that tells of it. On
// Cluster both must lie in one slot, which equal names do.
func (c *Client) key(id string) string {
	return strings.Join([]string{c.cfg.Namespace, "result", id}, ":")
}
