package result_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/internal/testserver"
)

func open() (results *result.Client, closeAll func()) {
	srv, err := testserver.Start() // yours would be a server
	if err != nil {
		log.Fatal(err)
	}
	rdb := redis.NewClient(srv.Options())
	results, err = result.New(rdb, result.Config{})
	if err != nil {
		log.Fatal(err)
	}
	return results, func() {
		_ = results.Close()
		_ = rdb.Close()
		srv.Close()
	}
}

func Example() {
	results, closeAll := open()
	defer closeAll()
	ctx := context.Background()

	stored := make(chan struct{})
	go func() { // a worker, mostly elsewhere
		defer close(stored)
		value, err := results.Encode(map[string]int{"sum": 42})
		if err != nil {
			log.Fatal(err)
		}
		_, err = results.Store(ctx, result.Record{ID: "job-1", State: result.Success, Attempt: 1, Value: value})
		if err != nil {
			log.Fatal(err)
		}
	}()

	r, err := results.Wait(ctx, "job-1")
	if err != nil {
		log.Fatal(err)
	}
	var answer struct{ Sum int }
	if err := results.Decode(r, &answer); err != nil {
		log.Fatal(err)
	}
	fmt.Println(r.State, answer.Sum)
	<-stored // before the client is closed
	// Output: success 42
}

func ExampleClient_Get() {
	results, closeAll := open()
	defer closeAll()
	ctx := context.Background()

	r, _ := results.Get(ctx, "job-1")
	fmt.Println(r.State)
	_, _ = results.Store(ctx, result.Record{ID: "job-1", State: result.Progress, Attempt: 1, Progress: []byte("7 of 10")})
	r, _ = results.Get(ctx, "job-1")
	fmt.Printf("%s: %s\n", r.State, r.Progress)
	// Output:
	// pending
	// progress: 7 of 10
}

// Several tasks are waited for by one call, over the one subscription of the client.
func ExampleClient_WaitAll() {
	results, closeAll := open()
	defer closeAll()
	ctx := context.Background()

	for _, r := range []result.Record{
		{ID: "page-1", State: result.Success, Attempt: 1, Value: []byte(`"text"`)},
		{ID: "page-2", State: result.Failure, Attempt: 3, Cause: result.CauseOf(errors.New("no such page"))},
	} {
		if _, err := results.Store(ctx, r); err != nil {
			log.Fatal(err)
		}
	}
	pages, err := results.WaitAll(ctx, "page-1", "page-2")
	if err != nil {
		log.Fatal(err)
	}
	for _, page := range pages {
		fmt.Println(page.ID, page.State, page.Err())
	}
	// Output:
	// page-1 success <nil>
	// page-2 failure result: task "page-2": failure at attempt 3: no such page
}

func ExampleClient_Decode_failure() {
	results, closeAll := open()
	defer closeAll()
	ctx := context.Background()

	_, cause := os.Open("/no/such/file")
	_, _ = results.Store(ctx, result.Record{
		ID: "job-1", Task: "report", State: result.Failure, Attempt: 3, Cause: result.CauseOf(cause),
	})

	r, err := results.Wait(ctx, "job-1")
	if err != nil {
		log.Fatal(err)
	}
	var failed *result.TaskError
	if err := results.Decode(r, new(string)); errors.As(err, &failed) {
		fmt.Println(err)
		fmt.Println(failed.State, failed.Type)
	}
	// Output:
	// result: task report "job-1": failure at attempt 3: open /no/such/file: no such file or directory
	// failure *fs.PathError
}

// A late state of an older attempt, or one after the final state, is refused.
func ExampleClient_Store() {
	results, closeAll := open()
	defer closeAll()
	ctx := context.Background()

	for _, r := range []result.Record{
		{ID: "job-1", State: result.Started, Attempt: 2},
		{ID: "job-1", State: result.Failure, Attempt: 1},
		{ID: "job-1", State: result.Success, Attempt: 2},
		{ID: "job-1", State: result.Started, Attempt: 3},
	} {
		stored, err := results.Store(ctx, r)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(r.State, r.Attempt, stored)
	}
	// Output:
	// started 2 true
	// failure 1 false
	// success 2 true
	// started 3 false
}
