package main

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"

	"github.com/redisha/redisha/internal/redistest"
	"github.com/redisha/redisha/lock"
)

// How a resource in SQL refuses whoever held a lock before: the row keeps the
// greatest token that has written it. They are those of lock.SetFenced's
// documentation: $1 is the value, $2 the token, $3 the row.
var fencedStatements = map[string]string{
	"UPDATE": `UPDATE account SET balance = $1, fence = $2 WHERE id = $3 AND fence <= $2`,
	"INSERT": `INSERT INTO account (id, balance, fence) VALUES ($3, $1, $2)
		ON CONFLICT (id) DO UPDATE SET balance = excluded.balance, fence = excluded.fence
		WHERE account.fence <= excluded.fence`,
}

func newAccount(t *testing.T) *sql.DB {
	db, err := sql.Open("sqlite", ":memory:")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	db.SetMaxOpenConns(1) // each connection would have a database of its own
	_, err = db.ExecContext(t.Context(), `CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL, fence BIGINT NOT NULL DEFAULT 0)`)
	require.NoError(t, err)
	_, err = db.ExecContext(t.Context(), `INSERT INTO account (id, balance) VALUES (1, 100)`)
	require.NoError(t, err)
	return db
}

// An account is a row, written by one of the statements.
type account struct {
	*testing.T
	db        *sql.DB
	statement string
}

// write writes with a token, and returns how many rows took it.
func (a account) write(balance int, token int64) int64 { return a.exec(a.statement, balance, token, 1) }

func (a account) exec(statement string, args ...any) int64 {
	result, err := a.db.ExecContext(a.Context(), statement, args...)
	require.NoError(a, err)
	rows, err := result.RowsAffected()
	require.NoError(a, err)
	return rows
}

func (a account) balance() (n int) {
	require.NoError(a, a.db.QueryRowContext(a.Context(), `SELECT balance FROM account WHERE id = 1`).Scan(&n))
	return n
}

func TestSQLRefusesTheWriteOfAPausedHolder(t *testing.T) {
	const shortTTL = time.Second
	for name, statement := range fencedStatements {
		t.Run(name, func(t *testing.T) {
			server := redistest.Shared(t)
			proxy := redistest.NewProxy(t, server.Addr())
			clientAt := func(addr string) *lock.Client {
				cn, err := connect(settings{addr: addr})
				require.NoError(t, err)
				c, err := lock.New(cn, lockConfig(shortTTL))
				require.NoError(t, err)
				t.Cleanup(func() {
					require.NoError(t, c.Close())
					require.NoError(t, cn.Close())
				})
				return c
			}
			row := account{t, newAccount(t), statement}

			paused, err := clientAt(proxy.Addr()).TryAcquire(t.Context(), "account-1")
			require.NoError(t, err)
			require.Equal(t, int64(1), row.write(110, paused.Token()), "it holds the lock")
			require.Equal(t, int64(1), row.write(120, paused.Token()), "and may write more than once")
			read := row.balance()
			proxy.BlackHole(true) // nobody renews its lease from here on

			// It is paused here, between its look at the row and its write.
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			next, err := clientAt(server.Addr()).Acquire(ctx, "account-1")
			require.NoError(t, err)
			require.Greater(t, next.Token(), paused.Token())
			require.Equal(t, int64(1), row.write(row.balance()-50, next.Token()))

			require.ErrorIs(t, context.Cause(paused.Context()), lock.ErrLost)
			require.Zero(t, row.write(read+1, paused.Token()), "it does not look at its context, and writes all the same")
			require.Equal(t, 70, row.balance())
			require.Equal(t, int64(1), row.write(71, next.Token()), "who holds the lock goes on")
			require.NoError(t, next.Release(t.Context()))
			proxy.BlackHole(false)
			require.ErrorIs(t, paused.Release(t.Context()), lock.ErrLost)
		})
	}
}

// Without the fence in its condition the same write would be taken.
func TestSQLWithoutTheFenceLosesAnUpdate(t *testing.T) {
	row := account{t, newAccount(t), fencedStatements["UPDATE"]}
	require.Equal(t, int64(1), row.write(70, 2))
	require.Zero(t, row.write(101, 1))
	require.Equal(t, int64(1), row.exec(`UPDATE account SET balance = $1 WHERE id = $2`, 101, 1))
	require.Equal(t, 101, row.balance())
}

func TestSQLMakesTheRowOfAFirstHolder(t *testing.T) {
	row := account{t, newAccount(t), fencedStatements["INSERT"]}
	require.Equal(t, int64(1), row.exec(`DELETE FROM account WHERE id = 1`))
	require.Equal(t, int64(1), row.write(7, 3))
	require.Zero(t, row.write(8, 2))
	require.Equal(t, 7, row.balance())
}
