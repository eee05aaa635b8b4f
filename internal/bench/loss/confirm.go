package main

import (
	"log/slog"

	"github.com/redisha/redisha/broker"
)

// confirmable says that publishing can wait for replicas.
const confirmable = false

func brokerConfig(_ int, log *slog.Logger) broker.Config { return broker.Config{Logger: log} }
