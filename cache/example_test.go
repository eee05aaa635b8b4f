package cache_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/cache"
	"github.com/redisha/redisha/internal/testserver"
)

type User struct {
	ID   int64
	Name string
}

// connect returns a client of an in-memory server. An application takes
// Clients.Cache of redisha.Open instead, or gives New its own go-redis client.
func connect() (c *cache.Client, rdb *redis.Client, closeAll func()) {
	server, err := testserver.Start()
	if err != nil {
		panic(err)
	}
	rdb = redis.NewClient(server.Options())
	if c, err = cache.New(rdb, cache.Config{ReadTimeout: 5 * time.Second}); err != nil {
		panic(err)
	}
	return c, rdb, func() {
		_ = c.Close()
		_ = rdb.Close()
		server.Close()
	}
}

func ExampleView_Fetch() {
	client, _, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	users := cache.NewView[int64, User](client, "user", cache.ViewConfig{TTL: 10 * time.Minute})

	load := func(_ context.Context, id int64) (User, error) {
		fmt.Println("loading user", id)
		if id == 7 {
			return User{}, cache.ErrNotFound
		}
		return User{ID: id, Name: "Ada"}, nil
	}
	for range 2 {
		user, err := users.Fetch(ctx, 42, load)
		fmt.Println(user, err)
	}
	for range 2 { // that there is none is cached too
		_, err := users.Fetch(ctx, 7, load)
		fmt.Println(err)
	}
	// Output:
	// loading user 42
	// {42 Ada} <nil>
	// {42 Ada} <nil>
	// loading user 7
	// cache: not found
	// cache: not found
}

func ExampleView_Get() {
	client, _, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	users := cache.NewView[int64, User](client, "user", cache.ViewConfig{})

	_, err := users.Get(ctx, 42)
	switch {
	case errors.Is(err, cache.ErrMiss):
		fmt.Println("not in the cache")
	case errors.Is(err, cache.ErrNotFound):
		fmt.Println("there is no such user")
	case err != nil:
		fmt.Println("Redis could not be asked:", err)
	}
	// Output: not in the cache
}

func ExampleView_Set() {
	client, _, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	codes := cache.NewView[string, string](client, "code", cache.ViewConfig{Codec: cache.Raw})

	fmt.Println(codes.Set(ctx, "ada@example.com", "493 021", cache.TTL(5*time.Minute)))
	fmt.Println(codes.Get(ctx, "ada@example.com"))
	// Output:
	// <nil>
	// 493 021 <nil>
}

// A request asks Redis once for what it needs several times.
func ExampleClient_Scope() {
	client, _, closeAll := connect()
	defer closeAll()
	users := cache.NewView[int64, User](client, "user", cache.ViewConfig{})
	_ = users.Set(context.Background(), 42, User{ID: 42, Name: "Ada"})

	ctx := client.Scope(context.Background())
	for range 10 {
		_, _ = users.Get(ctx, 42)
	}
	_ = users.Set(ctx, 42, User{ID: 42, Name: "Ada Lovelace"}) // its own writes are there
	user, err := users.Get(ctx, 42)
	fmt.Println(user, err)
	fmt.Println(client.Stats().Hits, "read of Redis,", client.Stats().ScopeHits, "of the scope")
	// Output:
	// {42 Ada Lovelace} <nil>
	// 1 read of Redis, 10 of the scope
}

func ExampleClient_Middleware() {
	client, _, closeAll := connect()
	defer closeAll()
	users := cache.NewView[string, User](client, "user", cache.ViewConfig{})
	_ = users.Set(context.Background(), "42", User{ID: 42, Name: "Ada"})

	mux := http.NewServeMux()
	mux.HandleFunc("GET /user/{id}", func(w http.ResponseWriter, r *http.Request) {
		var user User
		for range 10 { // in as many layers of the program
			user, _ = users.Get(r.Context(), r.PathValue("id"))
		}
		fmt.Fprintln(w, user.Name, client.Stats().Hits, "read of Redis")
	})
	server := httptest.NewServer(client.Middleware(mux))
	defer server.Close()

	resp, err := http.Get(server.URL + "/user/42")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	_, _ = io.Copy(os.Stdout, resp.Body)
	// Output: Ada 1 read of Redis
}

func ExampleView_FetchEntry() {
	client, rdb, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	tokens := cache.NewView[string, string](client, "token", cache.ViewConfig{Codec: cache.Raw})

	token, err := tokens.FetchEntry(ctx, "billing", func(context.Context, string) (cache.Entry[string], error) {
		return cache.Entry[string]{Value: "ey…", TTL: 5 * time.Minute}, nil // as long as its issuer says
	})
	fmt.Println(token.Value, token.Source, err)
	fmt.Println(rdb.TTL(ctx, "redisha:cache:token:billing").Val() <= 5*time.Minute)
	// Output:
	// ey… loader <nil>
	// true
}

func ExampleView_Lookup() {
	client, _, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	users := cache.NewView[int64, User](client, "user", cache.ViewConfig{})
	_ = users.Set(ctx, 42, User{ID: 42, Name: "Ada"})

	user, err := users.Lookup(ctx, 42)
	fmt.Println(user.Value.Name, user.Source, user.Age < time.Minute, user.Stale, err)
	// Output: Ada redis true false <nil>
}

// After an Expire the old value serves until it has been refreshed.
func ExampleView_Expire() {
	client, _, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	users := cache.NewView[int64, User](client, "user", cache.ViewConfig{SoftLoadTimeout: 5 * time.Second})
	_ = users.Set(ctx, 42, User{ID: 42, Name: "Ada"})

	_ = users.Expire(ctx, 42)
	_, err := users.Get(ctx, 42)
	fmt.Println(err)
	old, err := users.Fetch(ctx, 42, func(context.Context, int64) (User, error) {
		return User{}, errors.New("the database is down")
	})
	fmt.Println(old, err)
	// Output:
	// cache: miss
	// {42 Ada} <nil>
}

// Values serve for another day when their ten minutes are over: at once, while one
// caller refreshes them, and as long as the source fails.
func ExampleViewConfig_stale() {
	client, _, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	users := cache.NewView[int64, User](client, "user", cache.ViewConfig{TTL: 10 * time.Minute, StaleFor: 24 * time.Hour})

	user, err := users.Fetch(ctx, 42, func(_ context.Context, id int64) (User, error) { return User{ID: id, Name: "Ada"}, nil })
	fmt.Println(user, err)
	// Output: {42 Ada} <nil>
}

func ExampleView_InvalidateTags() {
	client, _, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	pages := cache.NewView[string, string](client, "page", cache.ViewConfig{Codec: cache.Raw, Tags: true})

	render := func(_ context.Context, path string) (cache.Entry[string], error) {
		return cache.Entry[string]{Value: "<h1>Ada</h1>", Tags: []string{"user 42"}}, nil
	}
	for _, path := range []string{"/", "/users", "/users/42"} {
		_, _ = pages.FetchEntry(ctx, path, render)
	}
	_ = pages.Set(ctx, "/about", "<h1>About</h1>", cache.Tags("static"))

	// The user has changed: from here on nobody gets a page that shows the old one.
	fmt.Println(pages.InvalidateTags(ctx, "user 42"))
	_, err := pages.Get(ctx, "/users/42")
	fmt.Println(err)
	fmt.Println(pages.Get(ctx, "/about"))
	// Output:
	// <nil>
	// cache: miss
	// <h1>About</h1> <nil>
}

func ExampleView_Clear() {
	client, _, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	users := cache.NewView[int64, User](client, "user", cache.ViewConfig{})
	_ = users.SetMany(ctx, map[int64]User{42: {ID: 42, Name: "Ada"}, 43: {ID: 43, Name: "Grace"}})

	fmt.Println(users.Clear(ctx))
	_, err := users.Get(ctx, 42)
	fmt.Println(err)
	// Output:
	// <nil>
	// cache: miss
}

// Most reads of a value that everybody needs do not leave the process.
func ExampleViewConfig_localEntries() {
	client, _, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	settings := cache.NewView[string, string](client, "setting", cache.ViewConfig{LocalEntries: 1000})
	_ = settings.Set(ctx, "theme", "dark")

	for client.Stats().LocalHits < 100 {
		_, _ = settings.Get(ctx, "theme")
	}
	_ = settings.Set(ctx, "theme", "light") // is seen at once in this process
	fmt.Println(settings.Get(ctx, "theme"))
	// Output: light <nil>
}

func ExampleView_GetInto() {
	client, _, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	pages := cache.NewView[string, []byte](client, "page", cache.ViewConfig{Codec: cache.Raw})
	_ = pages.Set(ctx, "/", []byte("<h1>Hello</h1>"))
	_ = pages.Set(ctx, "/bye", []byte("<h1>Bye</h1>"))

	buf := make([]byte, 0, 4096) // for both
	for _, path := range []string{"/", "/bye"} {
		err := pages.GetInto(ctx, path, &buf)
		fmt.Println(string(buf), cap(buf), err)
	}
	// Output:
	// <h1>Hello</h1> 4096 <nil>
	// <h1>Bye</h1> 4096 <nil>
}

func ExampleView_GetMany() {
	client, _, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	users := cache.NewView[int64, User](client, "user", cache.ViewConfig{})
	_ = users.Set(ctx, 42, User{ID: 42, Name: "Ada"})

	ids := []int64{42, 43}
	for i, user := range users.GetMany(ctx, ids) {
		switch {
		case user.Err == nil:
			fmt.Println(ids[i], user.Value.Name)
		case errors.Is(user.Err, cache.ErrMiss):
			fmt.Println(ids[i], "is not in the cache")
		}
	}
	// Output:
	// 42 Ada
	// 43 is not in the cache
}

func ExampleView_FetchMany() {
	client, _, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	users := cache.NewView[int64, User](client, "user", cache.ViewConfig{})
	_ = users.Set(ctx, 42, User{ID: 42, Name: "Ada"})

	// One query for all that are not in the cache. There is no user 44.
	load := func(_ context.Context, missing []int64) (map[int64]User, error) {
		fmt.Println("loading", len(missing), "users")
		return map[int64]User{43: {ID: 43, Name: "Grace"}}, nil
	}
	for range 2 {
		found, err := users.FetchMany(ctx, []int64{42, 43, 44}, load)
		fmt.Println(found[42].Name, found[43].Name, len(found), err)
	}
	// Output:
	// loading 2 users
	// Ada Grace 2 <nil>
	// Ada Grace 2 <nil>
}

func ExampleView_SetMany() {
	client, _, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	users := cache.NewView[int64, User](client, "user", cache.ViewConfig{MaxValueBytes: 100})

	err := users.SetMany(ctx, map[int64]User{
		42: {ID: 42, Name: "Ada"},
		43: {ID: 43, Name: strings.Repeat("Grace", 100)},
	})
	var failed *cache.KeysError[int64]
	if errors.As(err, &failed) {
		for id := range failed.Errs {
			fmt.Println(id, "was not stored")
		}
	}
	ada, _ := users.Get(ctx, 42)
	fmt.Println(ada)
	// Output:
	// 43 was not stored
	// {42 Ada}
}

func ExampleView_Add() {
	client, _, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	codes := cache.NewView[string, string](client, "code", cache.ViewConfig{Codec: cache.Raw})

	fmt.Println(codes.Add(ctx, "ada@example.com", "493 021"))
	fmt.Println(codes.Add(ctx, "ada@example.com", "111 222")) // the first one stays
	fmt.Println(codes.Get(ctx, "ada@example.com"))
	// Output:
	// true <nil>
	// false <nil>
	// 493 021 <nil>
}

func ExampleView_Replace() {
	client, _, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	users := cache.NewView[int64, User](client, "user", cache.ViewConfig{})
	_ = users.Set(ctx, 42, User{ID: 42, Name: "Ada"})

	fmt.Println(users.Replace(ctx, 42, User{ID: 42, Name: "Ada Lovelace"}))
	fmt.Println(users.Replace(ctx, 43, User{ID: 43, Name: "Grace"})) // nobody has asked for it yet
	// Output:
	// true <nil>
	// false <nil>
}

func ExampleView_Delete() {
	client, _, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	users := cache.NewView[int64, User](client, "user", cache.ViewConfig{})
	_ = users.Set(ctx, 42, User{ID: 42, Name: "Ada"})

	// First the source, then the cache: from here on nobody gets the old value.
	if err := users.Delete(ctx, 42); err != nil {
		fmt.Println("old values may still be served:", err)
	}
	_, err := users.Get(ctx, 42)
	fmt.Println(err)
	// Output: cache: miss
}

func ExampleView_DeleteFor() {
	client, _, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	users := cache.NewView[int64, User](client, "user", cache.ViewConfig{})
	load := func(_ context.Context, id int64) (User, error) { return User{ID: id, Name: "Ada"}, nil }

	// The loader reads from a replica of the database, which may be late: for five
	// seconds nothing that it returns is stored.
	fmt.Println(users.DeleteFor(ctx, 5*time.Second, 42))
	fmt.Println(users.Fetch(ctx, 42, load))
	_, err := users.Get(ctx, 42)
	fmt.Println(err)

	// What is set is known to be new.
	_ = users.Set(ctx, 42, User{ID: 42, Name: "Ada Lovelace"})
	fmt.Println(users.Get(ctx, 42))
	// Output:
	// <nil>
	// {42 Ada} <nil>
	// cache: miss
	// {42 Ada Lovelace} <nil>
}

// A plain view stores what other programs read, too.
func ExampleViewConfig_plain() {
	client, rdb, closeAll := connect()
	defer closeAll()
	ctx := context.Background()
	users := cache.NewView[int64, User](client, "user", cache.ViewConfig{Plain: true})

	_ = users.Set(ctx, 42, User{ID: 42, Name: "Ada"})
	fmt.Println(rdb.Get(ctx, "redisha:cache:user:42").Val())
	// Output: {"ID":42,"Name":"Ada"}
}
