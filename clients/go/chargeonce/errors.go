package chargeonce

import (
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Advice is the next action after an error of the service. It may be a word that is not among the constants.
type Advice string

// The advice of charging.v1.Advice.
const (
	RetrySameKey Advice = "RETRY_SAME_KEY"
	UseNewKey    Advice = "USE_NEW_KEY"
	AskStatus    Advice = "ASK_STATUS"
	DoNotRetry   Advice = "DO_NOT_RETRY"
)

// Error is the error of a call, with the details that the service sends as google.rpc messages. If the service refuses a request, as
// it is, that is said of this call: unless the advice is USE_NEW_KEY, an earlier call with the key may have moved money.
type Error struct {
	Code       codes.Code
	Message    string            // fixed texts of the service's, which repeat nothing of the input
	Reason     string            // such as IDEMPOTENCY_KEY_REUSED; empty if the error is not the service's own, but gRPC's
	Advice     Advice            // empty if the error is not the service's own
	Metadata   map[string]string // what the reason's documentation names, and the advice
	Violations []string          // the faulty fields of an invalid request, such as "amount.minor_units"
	RetryAfter time.Duration     // when a retry is useful; 0 if the service does not say it
	cause      error
}

// FromError reads the details of an error of a call. It gives nil for nil.
func FromError(err error) *Error {
	if err == nil {
		return nil
	}
	answer := status.Convert(err)
	result := &Error{Code: answer.Code(), Message: answer.Message(), cause: err}
	for _, detail := range answer.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() == "charging.v1" {
				result.Reason = detail.GetReason()
				result.Metadata = detail.GetMetadata()
				result.Advice = Advice(result.Metadata["advice"])
			}
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				result.Violations = append(result.Violations, violation.GetField())
			}
		case *errdetails.RetryInfo:
			result.RetryAfter = detail.GetRetryDelay().AsDuration()
		}
	}
	return result
}

// Error implements error.
func (e *Error) Error() string {
	if e.Reason == "" {
		return fmt.Sprintf("%s: %s", e.Code, e.Message)
	}
	return fmt.Sprintf("%s %s, %s: %s", e.Code, e.Reason, e.Advice, e.Message)
}

// Unwrap gives the error as gRPC gave it.
func (e *Error) Unwrap() error { return e.cause }

// MayRepeat tells whether the same request, sent again with the same key, may get another answer. An error without a reason
// leaves unknown what happened, and the key makes the repeat safe.
func (e *Error) MayRepeat() bool {
	switch {
	case e.Reason == "":
		return true
	case e.Advice == RetrySameKey:
		return e.Code != codes.NotFound // of a query: its advice means the charge, not the query
	case e.Advice == UseNewKey, e.Advice == DoNotRetry:
		return false
	}
	// AskStatus, and advice of a later contract counts as that. Under these codes it is a query that cannot tell yet.
	switch e.Code {
	case codes.Unavailable, codes.ResourceExhausted, codes.Internal:
		return true
	}
	return false
}
