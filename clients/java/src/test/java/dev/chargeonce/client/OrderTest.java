package dev.chargeonce.client;

import static org.junit.jupiter.api.Assertions.assertEquals;

import dev.chargeonce.charging.v1.*;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;

@ExtendWith(Sandbox.Extension.class)
class OrderTest {
  @Test
  void anOrderIsPaidOnce(Sandbox sandbox) throws Exception {
    var channel = Channels.plaintext(sandbox.command());
    var commands = CommandServiceGrpc.newBlockingStub(channel);
    var order = ChargeRequest.newBuilder().setIdempotencyKey("order-1001").setUserId("alice");
    order.getCardBuilder().setToken("tok_visa");
    order.getAmountBuilder().setMinorUnits(1250).setCurrencyCode("EUR");

    var charge = commands.charge(order.build());
    var again = commands.charge(order.build());

    assertEquals(ChargeStatus.CHARGE_STATUS_CHARGED, charge.getStatus());
    assertEquals(charge.getTransactionId(), again.getTransactionId());
    assertEquals(1, sandbox.movements(charge.getChargeId()).size());
    channel.shutdown();
  }
}
