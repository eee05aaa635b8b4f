package redisha

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/redisha/redisha/internal/endpoint"
)

// A URL says where a role's Redis is, such as redis://user:password@host:6379/0.
// The package comment lists the forms and the parameters.
//
// However it is printed, logged or marshalled, its passwords show as xxxxx; a
// conversion to string gives them. Fmt cannot hide them inside an unexported
// field of a struct that is itself printed: do not print such a struct.
type URL string

// String returns the URL without its passwords.
func (u URL) String() string { return endpoint.Redact(string(u)) }

// Format prints what String returns, whatever the verb.
func (u URL) Format(s fmt.State, verb rune) {
	if verb == 'q' || verb == 'v' && s.Flag('#') {
		_, _ = fmt.Fprintf(s, "%q", u.String())
		return
	}
	_, _ = io.WriteString(s, u.String())
}

// MarshalText returns the URL without its passwords.
func (u URL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// LogValue returns the URL without its passwords.
func (u URL) LogValue() slog.Value { return slog.StringValue(u.String()) }

// Validate reports what is wrong with the URL: every problem, with what was
// given (without passwords), what is allowed and what to do. Several redis URLs
// separated by ";" are valid for locks alone.
func (u URL) Validate() error {
	_, err := endpoint.Parse(string(u))
	return err
}
