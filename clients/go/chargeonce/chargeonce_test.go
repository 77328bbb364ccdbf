package chargeonce_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"chargeonce.dev/chargeonce"
	pb "chargeonce.dev/charging/v1"
	"chargeonce.dev/sandbox"
)

var (
	town     *sandbox.Sandbox
	commands pb.CommandServiceClient
	queries  pb.QueryServiceClient
)

// TestMain starts one sandbox for all tests; each test has keys of its own.
func TestMain(m *testing.M) {
	var err error
	if town, err = sandbox.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	commands = pb.NewCommandServiceClient(chargeonce.Must(chargeonce.Dial(town.Command)))
	queries = pb.NewQueryServiceClient(chargeonce.Must(chargeonce.Dial(town.Query)))
	code := m.Run()
	if err := town.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// order is a request whose key is the test's name.
func order(t *testing.T) *pb.ChargeRequest {
	return &pb.ChargeRequest{
		IdempotencyKey: t.Name(),
		UserId:         "go",
		Card:           &pb.Card{Token: "tok_visa"},
		Amount:         &pb.Money{MinorUnits: 1250, CurrencyCode: "EUR"},
	}
}

func settled(t *testing.T, request *pb.ChargeRequest) *pb.ChargeResponse {
	t.Helper()
	answer, err := chargeonce.Settle(t.Context(), commands.Charge, request)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// movements counts the movements of money for a charge, by the bank's statement.
func movements(t *testing.T, chargeID string) int {
	t.Helper()
	answer, err := http.Get(town.Bank + "/statement")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var statement struct {
		Movements []struct{ Reference string }
	}
	if err := json.NewDecoder(answer.Body).Decode(&statement); err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, movement := range statement.Movements {
		if movement.Reference == chargeID {
			count++
		}
	}
	return count
}

// ordered has the bank do a fault once, at the next call that it fits.
func ordered(t *testing.T, fault string) {
	t.Helper()
	answer, err := http.Post(town.Bank+"/faults", "application/json", strings.NewReader(fault))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode >= http.StatusMultipleChoices {
		t.Fatalf("the bank answers %s", answer.Status)
	}
}

func TestTheSameKeyMovesMoneyOnce(t *testing.T) {
	first, second := settled(t, order(t)), settled(t, order(t))
	if first.GetStatus() != pb.ChargeStatus_CHARGE_STATUS_CHARGED {
		t.Errorf("the status is %s", first.GetStatus())
	}
	if second.GetTransactionId() != first.GetTransactionId() {
		t.Errorf("%s and %s are two transactions of one key", first.GetTransactionId(), second.GetTransactionId())
	}
	if second.GetOutcomeSource() != pb.OutcomeSource_OUTCOME_SOURCE_REPLAYED {
		t.Errorf("the second outcome is %s", second.GetOutcomeSource())
	}
	if count := movements(t, first.GetChargeId()); count != 1 {
		t.Errorf("the bank moved money %d times", count)
	}
}

func TestADeadlineThatPassesLeavesTheChargeToItsKey(t *testing.T) {
	request := order(t)
	request.Card.Token = "tok_slow"
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if early, err := commands.Charge(ctx, request); err == nil && early.GetStatus() != pb.ChargeStatus_CHARGE_STATUS_PENDING {
		t.Errorf("the slow card is %s already", early.GetStatus())
	}
	answer := settled(t, request)
	if answer.GetStatus() != pb.ChargeStatus_CHARGE_STATUS_CHARGED {
		t.Errorf("the status is %s", answer.GetStatus())
	}
	if count := movements(t, answer.GetChargeId()); count != 1 {
		t.Errorf("the bank moved money %d times", count)
	}
}

func TestPendingIsNotAnOutcome(t *testing.T) {
	request := order(t)
	request.Card.Token = "tok_slow"
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if answer, err := chargeonce.Settle(ctx, commands.Charge, request); !errors.Is(err, chargeonce.ErrUndecided) {
		t.Errorf("the charge is %v with the error %v", answer, err)
	}
	refund := &pb.RefundRequest{IdempotencyKey: "back", ChargeId: settled(t, request).GetChargeId()}
	ordered(t, `{"on": "execute", "fault": "delay", "seconds": 2}`)
	ctx, cancel = context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if answer, err := chargeonce.Settle(ctx, commands.Refund, refund); !errors.Is(err, chargeonce.ErrUndecided) {
		t.Errorf("the refund is %v with the error %v", answer, err)
	}
	answer, err := chargeonce.Settle(t.Context(), commands.Refund, refund)
	if status := answer.GetOutcome().GetStatus(); status != pb.OperationStatus_OPERATION_STATUS_EXECUTED {
		t.Errorf("the refund is %s in the end, with the error %v", status, err)
	}
}

func TestARefusalSaysWhyAndWhatToDo(t *testing.T) {
	request := order(t)
	request.UserId = ""
	request.Amount.MinorUnits = 0
	_, err := chargeonce.Settle(t.Context(), commands.Charge, request)
	var problem *chargeonce.Error
	if !errors.As(err, &problem) {
		t.Fatalf("the error is %v", err)
	}
	if problem.Code != codes.InvalidArgument || problem.Reason != "INVALID_REQUEST" || problem.Advice != chargeonce.DoNotRetry {
		t.Errorf("the error is %v", problem)
	}
	slices.Sort(problem.Violations)
	if !slices.Equal(problem.Violations, []string{"amount.minor_units", "user_id"}) {
		t.Errorf("the violations are %q", problem.Violations)
	}
}

func TestAKeyOfAnotherAmountIsRefusedWithItsStatus(t *testing.T) {
	settled(t, order(t))
	request := order(t)
	request.Amount.MinorUnits = 1300
	_, err := chargeonce.Settle(t.Context(), commands.Charge, request)
	problem := chargeonce.FromError(err)
	if problem == nil || problem.Advice != chargeonce.AskStatus || problem.Metadata["status"] != "CHARGED" {
		t.Errorf("the error is %v, with %v", problem, problem.Metadata)
	}
}

func TestAQueryShowsItsOwnWriteToTheLastUnit(t *testing.T) {
	request := order(t)
	request.Amount = &pb.Money{MinorUnits: 999_999_999_999, CurrencyCode: "IDR"}
	written := settled(t, request)
	shown, err := chargeonce.Settle(t.Context(), queries.GetCharge, &pb.GetChargeRequest{
		By:          &pb.GetChargeRequest_ChargeId{ChargeId: written.GetChargeId()},
		MinPosition: written.GetPosition(),
		JournalId:   written.GetJournalId(),
	})
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(shown.GetCharge().GetAmount(), request.GetAmount()) {
		t.Errorf("the amount is %v", shown.GetCharge().GetAmount())
	}
}

// An answer of a later contract: status 99, position 2^53 + 1, and a field that is not known here.
func TestUnknownValuesAreKept(t *testing.T) {
	sent := []byte("\x10\x63\x28\x81\x80\x80\x80\x80\x80\x80\x10\xc2\x3e\x01\x78")
	var answer pb.ChargeResponse
	if err := proto.Unmarshal(sent, &answer); err != nil {
		t.Fatal(err)
	}
	if answer.GetStatus() != 99 || answer.GetPosition() != 1<<53+1 {
		t.Errorf("status %d, position %d", answer.GetStatus(), answer.GetPosition())
	}
	if again := chargeonce.Must(proto.Marshal(&answer)); string(again) != string(sent) {
		t.Errorf("%x became %x", sent, again)
	}
}

func TestATokenIsNeverSentInPlaintext(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := chargeonce.Dial(town.Command, chargeonce.Token(file)); err == nil {
		t.Error("a connection in plaintext takes a token")
	}
}

func TestWhichErrorsAreRepeated(t *testing.T) {
	answer := func(code codes.Code, domain, reason string, advice chargeonce.Advice) error {
		info := &errdetails.ErrorInfo{Domain: domain, Reason: reason, Metadata: map[string]string{"advice": string(advice)}}
		soon := &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Millisecond)}
		return chargeonce.Must(status.New(code, "a text").WithDetails(info, soon)).Err()
	}
	for name, expected := range map[string]struct {
		err      error
		repeated bool
	}{
		"a lost connection":          {status.Error(codes.Unavailable, "connection reset"), true},
		"gRPC's own, with any code":  {status.Error(codes.Unknown, "transport error"), true},
		"an error of a proxy's":      {answer(codes.PermissionDenied, "proxy.example", "BUSY", ""), true},
		"the server stops":           {answer(codes.Unavailable, "charging.v1", "SERVER_STOPPING", chargeonce.RetrySameKey), true},
		"the view is behind":         {answer(codes.Unavailable, "charging.v1", "VIEW_BEHIND", chargeonce.AskStatus), true},
		"too many queries":           {answer(codes.ResourceExhausted, "charging.v1", "TOO_MANY_CALLS", chargeonce.AskStatus), true},
		"a query meets a fault":      {answer(codes.Internal, "charging.v1", "UNEXPECTED", chargeonce.AskStatus), true},
		"a query finds nothing":      {answer(codes.NotFound, "charging.v1", "CHARGE_NOT_FOUND", chargeonce.RetrySameKey), false},
		"the key of another request": {answer(codes.AlreadyExists, "charging.v1", "IDEMPOTENCY_KEY_REUSED", chargeonce.AskStatus), false},
		"the key of a decline":       {answer(codes.AlreadyExists, "charging.v1", "IDEMPOTENCY_KEY_REUSED", chargeonce.UseNewKey), false},
		"a fault in the request":     {answer(codes.InvalidArgument, "charging.v1", "INVALID_REQUEST", chargeonce.DoNotRetry), false},
		"a reason without advice":    {answer(codes.AlreadyExists, "charging.v1", "MOON", ""), false},
		"later advice, while away":   {answer(codes.Unavailable, "charging.v1", "MOON", "WAIT_FOR_THE_MOON"), true},
		"later advice, at a refusal": {answer(codes.AlreadyExists, "charging.v1", "MOON", "WAIT_FOR_THE_MOON"), false},
	} {
		t.Run(name, func(t *testing.T) {
			attempts := 0
			err := chargeonce.Repeat(t.Context(), func(context.Context) error {
				if attempts++; attempts == 1 {
					return expected.err
				}
				return nil
			})
			if repeated := attempts == 2 && err == nil; repeated != expected.repeated {
				t.Errorf("%d attempts, and then %v", attempts, err)
			}
		})
	}
}
