package main

import (
	"context"
	"encoding/hex"
	"errors"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"chargeonce.dev/chargeonce"
	pb "chargeonce.dev/charging/v1"
)

// impatience is the deadline of a call that is to end before the slow card's outcome.
const impatience = 300 * time.Millisecond

// seen is what a step prints: names and values by turns.
type seen []any

type step struct {
	name string
	take func(context.Context) (seen, error)
}

// tour is the tour of one pair of servers, with the answers that later steps build on.
type tour struct {
	commands pb.CommandServiceClient
	queries  pb.QueryServiceClient
	first    *pb.ChargeResponse   // of the step charge
	hold     *pb.ChargeResponse   // of the step hold
	customer *pb.ChargeResponse   // of the step customer
	refund   *pb.OperationOutcome // of the step refund
}

func (t *tour) steps() []step {
	return []step{
		{"charge", t.charges},
		{"same key", t.repeatsTheKey},
		{"another amount", t.changesTheAmount},
		{"invalid", t.sendsFaults},
		{"decline", t.isDeclined},
		{"new key", t.reusesADeclinedKey},
		{"deadline", t.missesADeadline},
		{"after the deadline", t.asksAfterTheDeadline},
		{"own write", t.readsItsOwnWrite},
		{"large amount", t.chargesALargeAmount},
		{"unknown values", t.readsUnknownValues},
		{"hold", t.holds},
		{"capture", t.captures},
		{"void", t.voids},
		{"refund", t.refunds},
		{"too much", t.refundsTooMuch},
		{"customer", t.needsTheCustomer},
		{"call off", t.callsOff},
		{"watch", t.watches},
		{"pages", t.listsByPages},
		{"history", t.readsTheHistory},
		{"summary", t.readsTheSummary},
	}
}

// charge is the request that the steps vary.
func charge(key, card string, amount *pb.Money) *pb.ChargeRequest {
	return &pb.ChargeRequest{
		IdempotencyKey: key,
		UserId:         "tour",
		Card:           &pb.Card{Token: card, Brand: "visa", Last4: "4242"},
		Amount:         amount,
	}
}

func firstCharge(amount *pb.Money) *pb.ChargeRequest {
	request := charge("tour-1", "tok_visa", amount)
	request.Description = "one umbrella"
	request.Metadata = map[string]string{"order": "1001"}
	return request
}

func euro(minorUnits int64) *pb.Money { return &pb.Money{MinorUnits: minorUnits, CurrencyCode: "EUR"} }

// decimal writes an int64 as JSON should: as a string, since many readers of JSON have only doubles.
func decimal(number int64) string { return strconv.FormatInt(number, 10) }

// refusal is what a step prints of an error of the service, with some of its metadata.
func refusal(err error, metadata ...string) (seen, error) {
	var problem *chargeonce.Error
	if !errors.As(err, &problem) {
		return nil, err
	}
	what := seen{"code", int(problem.Code), "reason", problem.Reason, "advice", problem.Advice}
	for _, name := range metadata {
		what = append(what, name, problem.Metadata[name])
	}
	return what, nil
}

func (t *tour) charges(ctx context.Context) (_ seen, err error) {
	t.first, err = chargeonce.Settle(ctx, t.commands.Charge, firstCharge(euro(1250)))
	return seen{
		"charge_id", t.first.GetChargeId(),
		"status", t.first.GetStatus().String(),
		"outcome_source", t.first.GetOutcomeSource().String(),
	}, err
}

func (t *tour) repeatsTheKey(ctx context.Context) (seen, error) {
	answer, err := chargeonce.Settle(ctx, t.commands.Charge, firstCharge(euro(1250)))
	return seen{
		"charge_id", answer.GetChargeId(),
		"status", answer.GetStatus().String(),
		"outcome_source", answer.GetOutcomeSource().String(),
		"same_transaction", answer.GetTransactionId() == t.first.GetTransactionId(),
	}, err
}

func (t *tour) changesTheAmount(ctx context.Context) (seen, error) {
	_, err := chargeonce.Settle(ctx, t.commands.Charge, firstCharge(euro(1300)))
	return refusal(err, "status")
}

func (t *tour) sendsFaults(ctx context.Context) (seen, error) {
	request := charge("tour-invalid", "tok_visa", euro(0))
	request.UserId = ""
	_, err := chargeonce.Settle(ctx, t.commands.Charge, request)
	what, other := refusal(err)
	return append(what, "violations", slices.Sorted(slices.Values(chargeonce.FromError(err).Violations))), other
}

func (t *tour) isDeclined(ctx context.Context) (seen, error) {
	answer, err := chargeonce.Settle(ctx, t.commands.Charge, charge("tour-2", "tok_declined", euro(1250)))
	return seen{"status", answer.GetStatus().String(), "decline_reason", answer.GetDeclineReason().String()}, err
}

func (t *tour) reusesADeclinedKey(ctx context.Context) (seen, error) {
	_, err := chargeonce.Settle(ctx, t.commands.Charge, charge("tour-2", "tok_visa", euro(1250)))
	return refusal(err)
}

func (t *tour) missesADeadline(ctx context.Context) (seen, error) {
	answer, err := t.chargesInHaste(ctx, charge("tour-3", "tok_slow", euro(1250)))
	return seen{"decided", err == nil && answer.GetStatus() != pb.ChargeStatus_CHARGE_STATUS_PENDING}, nil
}

// chargesInHaste makes one call whose deadline comes before the slow card's outcome.
func (t *tour) chargesInHaste(ctx context.Context, request *pb.ChargeRequest) (*pb.ChargeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, impatience)
	defer cancel()
	return t.commands.Charge(ctx, request)
}

func (t *tour) asksAfterTheDeadline(ctx context.Context) (seen, error) {
	answer, err := chargeonce.Settle(ctx, t.commands.Charge, charge("tour-3", "tok_slow", euro(1250)))
	return seen{"charge_id", answer.GetChargeId(), "status", answer.GetStatus().String()}, err
}

func (t *tour) readsItsOwnWrite(ctx context.Context) (seen, error) {
	answer, err := chargeonce.Settle(ctx, t.queries.GetCharge, &pb.GetChargeRequest{
		By:          &pb.GetChargeRequest_IdempotencyKey{IdempotencyKey: "tour-1"},
		MinPosition: t.first.GetPosition(),
		JournalId:   t.first.GetJournalId(),
	})
	shown := answer.GetCharge()
	return seen{
		"status", shown.GetStatus().String(),
		"amount", map[string]string{
			"minor_units":   decimal(shown.GetAmount().GetMinorUnits()),
			"currency_code": shown.GetAmount().GetCurrencyCode(),
		},
		"description", shown.GetDescription(),
		"metadata", shown.GetMetadata(),
		"is_shown", answer.GetAsOfPosition() >= t.first.GetPosition(),
	}, err
}

func (t *tour) chargesALargeAmount(ctx context.Context) (seen, error) {
	amount := &pb.Money{MinorUnits: 999_999_999_999, CurrencyCode: "IDR"}
	answer, err := chargeonce.Settle(ctx, t.commands.Charge, charge("tour-4", "tok_visa", amount))
	if err != nil {
		return nil, err
	}
	shown, err := chargeonce.Settle(ctx, t.queries.GetCharge, &pb.GetChargeRequest{
		By:          &pb.GetChargeRequest_IdempotencyKey{IdempotencyKey: "tour-4"},
		MinPosition: answer.GetPosition(),
		JournalId:   answer.GetJournalId(),
	})
	return seen{"minor_units", decimal(shown.GetCharge().GetAmount().GetMinorUnits())}, err
}

func (t *tour) readsUnknownValues(context.Context) (seen, error) {
	sent, err := hex.DecodeString("1063288180808080808010c23e0178")
	if err != nil {
		return nil, err
	}
	answer := new(pb.ChargeResponse)
	err = proto.Unmarshal(sent, answer)
	return seen{"status", int32(answer.GetStatus()), "position", decimal(answer.GetPosition())}, err
}

func (t *tour) holds(ctx context.Context) (_ seen, err error) {
	request := charge("tour-5", "tok_visa", euro(5000))
	request.Capture = pb.CaptureMode_CAPTURE_MODE_MANUAL
	t.hold, err = chargeonce.Settle(ctx, t.commands.Charge, request)
	return seen{"status", t.hold.GetStatus().String()}, err
}

func (t *tour) captures(ctx context.Context) (seen, error) {
	answer, err := chargeonce.Settle(ctx, t.commands.Capture, &pb.CaptureRequest{
		IdempotencyKey: "tour-capture", ChargeId: t.hold.GetChargeId(), Amount: euro(3000),
	})
	return outcome(answer.GetOutcome()), err
}

func (t *tour) voids(ctx context.Context) (seen, error) {
	answer, err := chargeonce.Settle(ctx, t.commands.Void, &pb.VoidRequest{
		IdempotencyKey: "tour-void", ChargeId: t.hold.GetChargeId(),
	})
	return outcome(answer.GetOutcome()), err
}

func (t *tour) refunds(ctx context.Context) (seen, error) {
	answer, err := chargeonce.Settle(ctx, t.commands.Refund, &pb.RefundRequest{
		IdempotencyKey: "tour-refund", ChargeId: t.hold.GetChargeId(), Amount: euro(1000), Reason: "one of three",
	})
	t.refund = answer.GetOutcome()
	return outcome(t.refund), err
}

func outcome(of *pb.OperationOutcome) seen {
	return seen{"status", of.GetStatus().String(), "minor_units", decimal(of.GetAmount().GetMinorUnits())}
}

func (t *tour) refundsTooMuch(ctx context.Context) (seen, error) {
	_, err := chargeonce.Settle(ctx, t.commands.Refund, &pb.RefundRequest{
		IdempotencyKey: "tour-too-much", ChargeId: t.hold.GetChargeId(), Amount: euro(2001),
	})
	return refusal(err, "left")
}

func (t *tour) needsTheCustomer(ctx context.Context) (_ seen, err error) {
	t.customer, err = chargeonce.Settle(ctx, t.commands.Charge, charge("tour-6", "tok_3ds", euro(1250)))
	return seen{"status", t.customer.GetStatus().String(), "has_url", t.customer.GetAction().GetUrl() != ""}, err
}

func (t *tour) callsOff(ctx context.Context) (seen, error) {
	answer, err := chargeonce.Settle(ctx, t.commands.Void, &pb.VoidRequest{
		IdempotencyKey: "tour-left", ChargeId: t.customer.GetChargeId(),
	})
	return seen{"status", answer.GetOutcome().GetStatus().String()}, err
}

func (t *tour) watches(ctx context.Context) (seen, error) {
	var begun *pb.ChargeResponse
	err := chargeonce.Repeat(ctx, func(ctx context.Context) (err error) {
		begun, err = t.chargesInHaste(ctx, charge("tour-7", "tok_slow", euro(1250)))
		return err
	})
	if err != nil {
		return nil, err
	}
	var statuses []pb.ChargeStatus
	err = chargeonce.Repeat(ctx, func(ctx context.Context) error {
		ctx, end := context.WithTimeout(ctx, chargeonce.CallTimeout)
		defer end() // the client ends the stream
		stream, err := t.queries.WatchCharge(ctx, &pb.WatchChargeRequest{
			By:          &pb.WatchChargeRequest_ChargeId{ChargeId: begun.GetChargeId()},
			MinPosition: begun.GetPosition(),
			JournalId:   begun.GetJournalId(),
		})
		if err != nil {
			return err
		}
		for {
			answer, err := stream.Recv()
			if err != nil {
				return err // at the end of the stream, too: it is opened again
			}
			status := answer.GetCharge().GetStatus()
			statuses = append(statuses, status)
			if status != pb.ChargeStatus_CHARGE_STATUS_PENDING {
				return nil
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return seen{"first", statuses[0].String(), "last", statuses[len(statuses)-1].String()}, nil
}

func (t *tour) listsByPages(ctx context.Context) (seen, error) {
	var last *pb.ChargeResponse
	for number := 1; number <= 5; number++ {
		request := charge("tour-page-"+strconv.Itoa(number), "tok_visa", euro(1250))
		request.UserId = "tour-pages"
		answer, err := chargeonce.Settle(ctx, t.commands.Charge, request)
		if err != nil {
			return nil, err
		}
		last = answer
	}
	var pages [][]string
	request := &pb.ListChargesRequest{
		UserId: "tour-pages", PageSize: 2, MinPosition: last.GetPosition(), JournalId: last.GetJournalId(),
	}
	for {
		page, err := chargeonce.Settle(ctx, t.queries.ListCharges, request)
		if err != nil {
			return nil, err
		}
		var keys []string
		for _, listed := range page.GetCharges() {
			keys = append(keys, listed.GetIdempotencyKey())
		}
		pages = append(pages, keys)
		request.PageToken = page.GetNextPageToken()
		if request.PageToken == "" {
			return seen{"pages", pages}, nil
		}
	}
}

func (t *tour) readsTheHistory(ctx context.Context) (seen, error) {
	history, err := chargeonce.Settle(ctx, t.queries.GetChargeHistory, &pb.GetChargeHistoryRequest{
		By:          &pb.GetChargeHistoryRequest_IdempotencyKey{IdempotencyKey: "tour-1"},
		MinPosition: t.first.GetPosition(),
		JournalId:   t.first.GetJournalId(),
	})
	var events []string
	for _, entry := range history.GetEntries() {
		events = append(events, entry.GetEvent())
	}
	return seen{"events", events}, err
}

func (t *tour) readsTheSummary(ctx context.Context) (seen, error) {
	summary, err := chargeonce.Settle(ctx, t.queries.GetUserSummary, &pb.GetUserSummaryRequest{
		UserId: "tour", MinPosition: t.refund.GetPosition(), JournalId: t.refund.GetJournalId(),
	})
	currencies := map[string]map[string]string{}
	for _, sums := range summary.GetCurrencies() {
		currencies[sums.GetCurrencyCode()] = map[string]string{
			"charged":  decimal(sums.GetChargedMinorUnits()),
			"refunded": decimal(sums.GetRefundedMinorUnits()),
			"net":      decimal(sums.GetNetMinorUnits()),
			"held":     decimal(sums.GetHeldMinorUnits()),
			"declined": decimal(sums.GetDeclinedMinorUnits()),
		}
	}
	return seen{"currencies", currencies}, err
}
