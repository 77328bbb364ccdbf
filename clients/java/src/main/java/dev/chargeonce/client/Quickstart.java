package dev.chargeonce.client;

import dev.chargeonce.charging.v1.*;

public class Quickstart {
  public static void main(String[] args) {
    var channel = Channels.plaintext("127.0.0.1:50051"); // with retries and a deadline
    var order = ChargeRequest.newBuilder().setIdempotencyKey("quickstart-java").setUserId("alice");
    order.getCardBuilder().setToken("tok_visa");
    order.getAmountBuilder().setMinorUnits(1250).setCurrencyCode("EUR");
    var charge = CommandServiceGrpc.newBlockingStub(channel).charge(order.build());
    System.out.println(charge.getStatus() + " " + charge.getTransactionId());
    channel.shutdown();
  }
}
