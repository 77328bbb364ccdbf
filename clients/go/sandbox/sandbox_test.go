package sandbox_test

import (
	"testing"

	"chargeonce.dev/chargeonce"
	pb "chargeonce.dev/charging/v1"
	"chargeonce.dev/sandbox"
)

func TestAnOrderIsPaid(t *testing.T) {
	town, err := sandbox.Start()
	if err != nil {
		t.Fatal(err)
	}
	defer town.Stop()
	commands := pb.NewCommandServiceClient(chargeonce.Must(chargeonce.Dial(town.Command)))

	answer, err := chargeonce.Settle(t.Context(), commands.Charge, &pb.ChargeRequest{
		IdempotencyKey: "order-1001",
		UserId:         "alice",
		Card:           &pb.Card{Token: "tok_visa"},
		Amount:         &pb.Money{MinorUnits: 1250, CurrencyCode: "EUR"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if answer.GetStatus() != pb.ChargeStatus_CHARGE_STATUS_CHARGED {
		t.Errorf("the order is %s", answer.GetStatus())
	}
}
