package main

import (
	"chargeonce.dev/chargeonce"
	pb "chargeonce.dev/charging/v1"
	"context"
	"fmt"
)

func main() {
	commands := pb.NewCommandServiceClient(chargeonce.Must(chargeonce.Dial("127.0.0.1:50051")))
	answer := chargeonce.Must(chargeonce.Settle(context.Background(), commands.Charge, &pb.ChargeRequest{UserId: "alice",
		IdempotencyKey: "quickstart-go", Card: &pb.Card{Token: "tok_visa"}, Amount: &pb.Money{MinorUnits: 1250, CurrencyCode: "EUR"}}))
	fmt.Println(answer.GetStatus(), answer.GetTransactionId())
}
