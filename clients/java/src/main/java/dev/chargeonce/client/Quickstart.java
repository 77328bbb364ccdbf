package dev.chargeonce.client;

import dev.chargeonce.charging.v1.*;

public class Quickstart {
  public static void main(String[] args) {
    var channel = Channels.plaintext("127.0.0.1:50051"); // with retries and a deadline
    var card = Card.newBuilder().setToken("tok_visa");
    var amount = Money.newBuilder().setMinorUnits(1250).setCurrencyCode("EUR");
    var order = ChargeRequest.newBuilder().setIdempotencyKey("quickstart-java").setUserId("alice");
    var commands = CommandServiceGrpc.newBlockingStub(channel);
    var charge = commands.charge(order.setCard(card).setAmount(amount).build());
    System.out.println(charge.getStatus() + " " + charge.getTransactionId());
    channel.shutdown();
  }
}
