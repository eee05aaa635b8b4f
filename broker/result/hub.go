package result

import (
	"log/slog"
	"time"

	"github.com/redisha/redisha/internal/conn"
)

type hub struct{}

func newHub(c *conn.Client, log *slog.Logger, n *counts) *hub { return &hub{} }

func (h *hub) close(timeout time.Duration) error { return nil }

func (h *hub) warnUnannounced() {}
