package chargeonce

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"

	pb "chargeonce.dev/charging/v1"
)

// The times of Settle and Repeat.
const (
	CallTimeout = 15 * time.Second       // the deadline of each call
	Patience    = time.Minute            // for how long calls are repeated
	Pause       = 500 * time.Millisecond // between two calls, where the service does not name a time
)

// ErrUndecided says that no outcome is known yet. The charge may go on: send the same request again later, with the same key.
var ErrUndecided = errors.New("no outcome is known yet, so send the same request again later")

var errPending = errors.New("the answer is PENDING")

// Settle makes a call of the generated client, and repeats it with the same request, and so the same key, until it is decided:
//
//	answer, err := chargeonce.Settle(ctx, commands.Charge, request)
//
// It returns an answer that is not PENDING; or an *Error that no repeat cures; or, after Patience or at the end of ctx, an
// ErrUndecided. With an error comes the last PENDING answer, if there was one.
func Settle[Request, Response any](
	ctx context.Context,
	call func(context.Context, *Request, ...grpc.CallOption) (*Response, error),
	request *Request,
) (*Response, error) {
	var last *Response
	err := Repeat(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, CallTimeout)
		defer cancel()
		answer, err := call(ctx, request)
		if err != nil {
			return err
		}
		last = answer
		if isPending(answer) {
			return errPending
		}
		return nil
	})
	return last, err
}

// Repeat makes attempts until one returns nil, or an error of the service that no repeat cures. It returns nil, an *Error or
// an ErrUndecided as Settle does. Use it for what is more than one call: a stream, or a deadline of your own.
func Repeat(ctx context.Context, attempt func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	for {
		err := attempt(ctx)
		if err == nil {
			return nil
		}
		problem := FromError(err)
		if !problem.MayRepeat() {
			return problem
		}
		pause := Pause
		if problem.RetryAfter > 0 {
			pause = problem.RetryAfter
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w): %w", ErrUndecided, ctx.Err(), err)
		case <-time.After(pause):
		}
	}
}

// Must gives a value, or panics if there is an error. It is for short programs.
func Must[Value any](value Value, err error) Value {
	if err != nil {
		panic(err)
	}
	return value
}

// isPending tells whether an answer to a command leaves the outcome open. Queries are always decided.
func isPending(answer any) bool {
	switch answer := answer.(type) {
	case interface{ GetStatus() pb.ChargeStatus }:
		return answer.GetStatus() == pb.ChargeStatus_CHARGE_STATUS_PENDING
	case interface{ GetOutcome() *pb.OperationOutcome }:
		return answer.GetOutcome().GetStatus() == pb.OperationStatus_OPERATION_STATUS_PENDING
	}
	return false
}
