// Package metrics shows Prometheus what the roles did and hold.
package metrics
