// The tour of ../../../TOUR.md: it prints what it saw, one line of JSON a step.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"google.golang.org/grpc"

	"chargeonce.dev/chargeonce"
	pb "chargeonce.dev/charging/v1"
)

func main() {
	if err := run(context.Background(), os.Stdout, os.Getenv); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run takes the tour of the servers that the environment names.
func run(ctx context.Context, out io.Writer, getenv func(string) string) error {
	var options []grpc.DialOption
	if folder := getenv("CHARGEONCE_TLS"); folder != "" {
		option, err := chargeonce.TLS(folder)
		if err != nil {
			return err
		}
		options = append(options, option)
	}
	if file := getenv("CHARGEONCE_TOKEN_FILE"); file != "" {
		options = append(options, chargeonce.Token(file))
	}
	commands, err := chargeonce.Dial(either(getenv("CHARGEONCE_COMMAND"), "127.0.0.1:50051"), options...)
	if err != nil {
		return err
	}
	defer commands.Close()
	queries, err := chargeonce.Dial(either(getenv("CHARGEONCE_QUERY"), "127.0.0.1:50052"), options...)
	if err != nil {
		return err
	}
	defer queries.Close()

	t := &tour{commands: pb.NewCommandServiceClient(commands), queries: pb.NewQueryServiceClient(queries)}
	transcript := slog.New(slog.NewJSONHandler(out, &slog.HandlerOptions{ReplaceAttr: asStep}))
	for _, step := range t.steps() {
		seen, err := step.take(ctx)
		if problem := (*chargeonce.Error)(nil); errors.As(err, &problem) {
			seen, err = refusal(err) // the step's result, which nobody expected
		}
		if err != nil {
			return fmt.Errorf("step %s: %w", step.name, err)
		}
		transcript.Info(step.name, seen...)
	}
	return nil
}

// either is the value, or the other one if it is empty.
func either(value, other string) string {
	if value == "" {
		return other
	}
	return value
}

// asStep makes a line of the log a line of the transcript: neither time nor level, and the message is the step's name.
func asStep(groups []string, attribute slog.Attr) slog.Attr {
	if len(groups) == 0 {
		switch attribute.Key {
		case slog.TimeKey, slog.LevelKey:
			return slog.Attr{}
		case slog.MessageKey:
			attribute.Key = "step"
		}
	}
	return attribute
}
