package dev.chargeonce.client;

import static java.util.concurrent.TimeUnit.MILLISECONDS;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.chargeonce.charging.v1.Card;
import dev.chargeonce.charging.v1.ChargeRequest;
import dev.chargeonce.charging.v1.ChargeResponse;
import dev.chargeonce.charging.v1.ChargeStatus;
import dev.chargeonce.charging.v1.CommandServiceGrpc;
import dev.chargeonce.charging.v1.CommandServiceGrpc.CommandServiceBlockingStub;
import dev.chargeonce.charging.v1.GetChargeRequest;
import dev.chargeonce.charging.v1.Money;
import dev.chargeonce.charging.v1.OperationStatus;
import dev.chargeonce.charging.v1.OutcomeSource;
import dev.chargeonce.charging.v1.QueryServiceGrpc;
import dev.chargeonce.charging.v1.QueryServiceGrpc.QueryServiceBlockingStub;
import dev.chargeonce.charging.v1.RefundRequest;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.nio.file.Path;
import java.util.EnumSet;
import java.util.HexFormat;
import java.util.List;
import java.util.concurrent.FutureTask;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.api.io.TempDir;

@ExtendWith(Sandbox.Extension.class)
class ChargeTest {
  private final Sandbox sandbox;
  private final ManagedChannel command;
  private final ManagedChannel query;
  private final CommandServiceBlockingStub commands;
  private final QueryServiceBlockingStub queries;

  ChargeTest(Sandbox sandbox) {
    this.sandbox = sandbox;
    command = Channels.plaintext(sandbox.command());
    query = Channels.plaintext(sandbox.query());
    commands = CommandServiceGrpc.newBlockingStub(command);
    queries = QueryServiceGrpc.newBlockingStub(query);
  }

  @AfterEach
  void shutDown() {
    command.shutdownNow();
    query.shutdownNow();
  }

  @Test
  void theSameKeyMovesMoneyOnce() throws Exception {
    var request = order("java-once").build();

    var first = charge(request);
    var again = charge(request);

    assertEquals(ChargeStatus.CHARGE_STATUS_CHARGED, first.getStatus());
    assertEquals(OutcomeSource.OUTCOME_SOURCE_REPLAYED, again.getOutcomeSource());
    assertEquals(first.getTransactionId(), again.getTransactionId());
    var movements = sandbox.movements(first.getChargeId());
    assertEquals(1, movements.size());
    assertEquals(first.getTransactionId(), movements.get(0).transaction_id());
    assertEquals(1250, movements.get(0).minor_units());
  }

  @Test
  void afterAnErrorOfTheLibraryTheSameKeyTellsTheOutcome() throws Exception {
    var request = order("java-deadline").setCard(card("tok_slow")).build();
    var calls = new AtomicInteger();

    // The first call ends before an answer can come, the next ones while the bank is at work.
    var charge =
        Retry.untilSettled(
            () -> {
              var milliseconds = calls.incrementAndGet() == 1 ? 1 : 300;
              return commands.withDeadlineAfter(milliseconds, MILLISECONDS).charge(request);
            },
            answer -> answer.getStatus() == ChargeStatus.CHARGE_STATUS_PENDING);

    assertTrue(calls.get() > 2, calls + " calls");
    assertEquals(ChargeStatus.CHARGE_STATUS_CHARGED, charge.getStatus());
    assertEquals(1, sandbox.movements(charge.getChargeId()).size());
  }

  @Test
  void aPendingOperationIsAskedForAgain() throws Exception {
    var charge = charge(order("java-refunded").build());
    var refund =
        RefundRequest.newBuilder().setIdempotencyKey("back").setChargeId(charge.getChargeId());
    sandbox.order("{\"on\": \"execute\", \"fault\": \"delay\", \"seconds\": 2}");
    var seen = EnumSet.noneOf(OperationStatus.class);

    Retry.untilSettled(
        () -> {
          var answer = commands.withDeadlineAfter(500, MILLISECONDS).refund(refund.build());
          seen.add(answer.getOutcome().getStatus());
          return answer.getOutcome().getStatus();
        },
        status -> status == OperationStatus.OPERATION_STATUS_PENDING);

    assertEquals(
        EnumSet.of(
            OperationStatus.OPERATION_STATUS_PENDING, OperationStatus.OPERATION_STATUS_EXECUTED),
        seen);
  }

  @Test
  void aChargeWaitsForServersThatAreAway(@TempDir Path folder) throws Exception {
    var kept = folder.toString();
    var town = Sandbox.start("--folder", kept);
    var channel = Channels.plaintext(town.command());
    var away = CommandServiceGrpc.newBlockingStub(channel);
    try {
      charge(away, order("java-before").build());
      town.kill();
      var waiting = new FutureTask<>(() -> charge(away, order("java-away").build()));
      new Thread(waiting).start();
      Thread.sleep(3_000); // The pauses between two tries to connect grow.
      town = Sandbox.start("--folder", kept);

      var charge = waiting.get();

      assertEquals(ChargeStatus.CHARGE_STATUS_CHARGED, charge.getStatus());
      assertEquals(1, town.movements(charge.getChargeId()).size());
    } finally {
      channel.shutdownNow();
      town.close();
    }
  }

  @Test
  void aDeadlineThatPassesHasNoReasonAndIsRetried() {
    var request = order("java-no-reason").build();

    var error =
        assertThrows(
            StatusRuntimeException.class,
            () -> commands.withDeadlineAfter(0, MILLISECONDS).charge(request));

    var refusal = Refusal.of(error);
    assertEquals(Status.Code.DEADLINE_EXCEEDED, refusal.code());
    assertEquals("", refusal.reason());
    assertTrue(refusal.isRetried());
  }

  @Test
  void anotherAmountUnderTheKeyIsRefusedWithAdvice() throws Exception {
    charge(order("java-amount").build());
    var another = order("java-amount").setAmount(money(1300, "EUR")).build();

    var error = assertThrows(StatusRuntimeException.class, () -> charge(another));

    var refusal = Refusal.of(error);
    assertEquals(Status.Code.ALREADY_EXISTS, refusal.code());
    assertEquals("IDEMPOTENCY_KEY_REUSED", refusal.reason());
    assertEquals("ASK_STATUS", refusal.advice());
    assertEquals("CHARGED", refusal.metadata().get("status"));
  }

  @Test
  void allFaultsOfARequestAreNamed() {
    var invalid = order("java-invalid").setUserId("").setAmount(money(0, "EUR")).build();

    var error = assertThrows(StatusRuntimeException.class, () -> charge(invalid));

    assertEquals(List.of("amount.minor_units", "user_id"), Refusal.of(error).violations());
  }

  @Test
  void aDeclineIsAnAnswer() throws Exception {
    var charge = charge(order("java-decline").setCard(card("tok_declined")).build());

    assertEquals(ChargeStatus.CHARGE_STATUS_DECLINED, charge.getStatus());
    assertEquals(List.of(), sandbox.movements(charge.getChargeId()));
  }

  @Test
  void amountsBeyondAnIntSurvive() throws Exception {
    var large = money(999_999_999_999L, "IDR");
    var charge = charge(order("java-large").setAmount(large).build());
    var ownWrite =
        GetChargeRequest.newBuilder()
            .setChargeId(charge.getChargeId())
            .setMinPosition(charge.getPosition())
            .setJournalId(charge.getJournalId())
            .build();

    var shown = Retry.untilSettled(() -> queries.getCharge(ownWrite), answer -> false);

    assertEquals(large, shown.getCharge().getAmount());
    assertEquals(999_999_999_999L, sandbox.movements(charge.getChargeId()).get(0).minor_units());
  }

  @Test
  void aStatusOfALaterContractKeepsItsNumber() throws Exception {
    var bytes = HexFormat.of().parseHex("1063288180808080808010c23e0178");

    var later = ChargeResponse.parseFrom(bytes);

    assertEquals(ChargeStatus.UNRECOGNIZED, later.getStatus());
    assertEquals(99, later.getStatusValue());
    assertEquals(9007199254740993L, later.getPosition());
    assertArrayEquals(bytes, later.toByteArray());
  }

  private ChargeResponse charge(ChargeRequest request) throws Exception {
    return charge(commands, request);
  }

  private static ChargeResponse charge(CommandServiceBlockingStub commands, ChargeRequest request)
      throws Exception {
    return Retry.untilSettled(
        () -> commands.charge(request),
        answer -> answer.getStatus() == ChargeStatus.CHARGE_STATUS_PENDING);
  }

  private static ChargeRequest.Builder order(String key) {
    return ChargeRequest.newBuilder()
        .setIdempotencyKey(key)
        .setUserId("java")
        .setCard(card("tok_visa"))
        .setAmount(money(1250, "EUR"));
  }

  private static Card card(String token) {
    return Card.newBuilder().setToken(token).build();
  }

  private static Money money(long minorUnits, String currency) {
    return Money.newBuilder().setMinorUnits(minorUnits).setCurrencyCode(currency).build();
  }
}
