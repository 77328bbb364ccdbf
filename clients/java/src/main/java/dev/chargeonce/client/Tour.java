package dev.chargeonce.client;

import static java.util.Map.entry;
import static java.util.concurrent.TimeUnit.MILLISECONDS;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.protobuf.InvalidProtocolBufferException;
import dev.chargeonce.charging.v1.CaptureMode;
import dev.chargeonce.charging.v1.CaptureRequest;
import dev.chargeonce.charging.v1.Card;
import dev.chargeonce.charging.v1.Charge;
import dev.chargeonce.charging.v1.ChargeRequest;
import dev.chargeonce.charging.v1.ChargeResponse;
import dev.chargeonce.charging.v1.ChargeStatus;
import dev.chargeonce.charging.v1.CommandServiceGrpc;
import dev.chargeonce.charging.v1.CommandServiceGrpc.CommandServiceBlockingStub;
import dev.chargeonce.charging.v1.GetChargeHistoryRequest;
import dev.chargeonce.charging.v1.GetChargeRequest;
import dev.chargeonce.charging.v1.GetUserSummaryRequest;
import dev.chargeonce.charging.v1.HistoryEntry;
import dev.chargeonce.charging.v1.ListChargesRequest;
import dev.chargeonce.charging.v1.Money;
import dev.chargeonce.charging.v1.OperationOutcome;
import dev.chargeonce.charging.v1.OperationStatus;
import dev.chargeonce.charging.v1.QueryServiceGrpc;
import dev.chargeonce.charging.v1.QueryServiceGrpc.QueryServiceBlockingStub;
import dev.chargeonce.charging.v1.RefundRequest;
import dev.chargeonce.charging.v1.VoidRequest;
import dev.chargeonce.charging.v1.WatchChargeRequest;
import io.grpc.Channel;
import io.grpc.Context;
import io.grpc.InsecureChannelCredentials;
import io.grpc.StatusRuntimeException;
import java.io.IOException;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeoutException;
import java.util.function.Supplier;

/**
 * The tour that every client takes: {@code clients/TOUR.md} says what each step does and prints.
 */
public final class Tour {
  private static final Gson JSON = new GsonBuilder().disableHtmlEscaping().create();
  private static final Money PRICE = eur(1250);

  private final CommandServiceBlockingStub commands;
  private final QueryServiceBlockingStub queries;
  private final PrintStream out;

  /**
   * Prepares a tour.
   *
   * @param out where the steps are printed, one line of JSON each
   */
  public Tour(Channel command, Channel query, PrintStream out) {
    this.commands = CommandServiceGrpc.newBlockingStub(command);
    this.queries = QueryServiceGrpc.newBlockingStub(query);
    this.out = out;
  }

  /** Takes the tour at the servers that the environment names. */
  public static void main(String[] arguments) throws IOException, InterruptedException {
    var folder = setting("CHARGEONCE_TLS", "");
    var token = setting("CHARGEONCE_TOKEN_FILE", "");
    var credentials =
        folder.isEmpty() ? InsecureChannelCredentials.create() : Channels.tls(Path.of(folder));
    if (!token.isEmpty()) {
      credentials = Channels.withToken(credentials, Path.of(token));
    }
    var command = Channels.open(setting("CHARGEONCE_COMMAND", "127.0.0.1:50051"), credentials);
    var query = Channels.open(setting("CHARGEONCE_QUERY", "127.0.0.1:50052"), credentials);
    try {
      new Tour(command, query, new PrintStream(System.out, true, StandardCharsets.UTF_8)).take();
    } catch (TimeoutException error) {
      System.err.println("tour: " + error.getMessage());
      System.exit(1);
    } finally {
      command.shutdownNow();
      query.shutdownNow();
    }
  }

  /**
   * Takes all steps, in order.
   *
   * @throws StatusRuntimeException an error where the tour expects none
   * @throws TimeoutException if a step has no result in 60 seconds
   */
  public void take() throws InterruptedException, TimeoutException {
    var first = theSameKey();
    errorsAndDeclines();
    deadline();
    ownWrite(first);
    int64AndUnknownValues();
    var refund = whatFollowsAHold();
    customer();
    watch();
    pages();
    history(first);
    summary(refund);
  }

  private ChargeResponse theSameKey() throws InterruptedException, TimeoutException {
    var request = umbrella(PRICE);
    var first = charge(request);
    print(
        "charge",
        entry("charge_id", first.getChargeId()),
        entry("status", first.getStatus().name()),
        entry("outcome_source", first.getOutcomeSource().name()));
    var again = charge(request);
    print(
        "same key",
        entry("charge_id", again.getChargeId()),
        entry("status", again.getStatus().name()),
        entry("outcome_source", again.getOutcomeSource().name()),
        entry("same_transaction", again.getTransactionId().equals(first.getTransactionId())));
    return first;
  }

  private void errorsAndDeclines() throws InterruptedException, TimeoutException {
    var another = refusal(() -> commands.charge(umbrella(eur(1300))));
    print(
        "another amount",
        entry("code", another.code().value()),
        entry("reason", another.reason()),
        entry("advice", another.advice()),
        entry("status", another.metadata().getOrDefault("status", "")));
    var nothing = order("tour-invalid").setUserId("").setAmount(eur(0)).build();
    var invalid = refusal(() -> commands.charge(nothing));
    print(
        "invalid",
        entry("code", invalid.code().value()),
        entry("reason", invalid.reason()),
        entry("advice", invalid.advice()),
        entry("violations", invalid.violations()));
    var declined = charge(order("tour-2").setCard(card("tok_declined")).build());
    print(
        "decline",
        entry("status", declined.getStatus().name()),
        entry("decline_reason", declined.getDeclineReason().name()));
    var reused = refusal(() -> commands.charge(order("tour-2").build()));
    print(
        "new key",
        entry("code", reused.code().value()),
        entry("reason", reused.reason()),
        entry("advice", reused.advice()));
  }

  private void deadline() throws InterruptedException, TimeoutException {
    var request = order("tour-3").setCard(card("tok_slow")).build();
    boolean isDecided;
    try {
      var answer = commands.withDeadlineAfter(300, MILLISECONDS).charge(request);
      isDecided = answer.getStatus() != ChargeStatus.CHARGE_STATUS_PENDING;
    } catch (StatusRuntimeException unknown) {
      isDecided = false;
    }
    print("deadline", entry("decided", isDecided));
    var settled = charge(request);
    print(
        "after the deadline",
        entry("charge_id", settled.getChargeId()),
        entry("status", settled.getStatus().name()));
  }

  private void ownWrite(ChargeResponse first) throws InterruptedException, TimeoutException {
    var answer =
        query(
            () ->
                queries.getCharge(
                    GetChargeRequest.newBuilder()
                        .setIdempotencyKey("tour-1")
                        .setMinPosition(first.getPosition())
                        .setJournalId(first.getJournalId())
                        .build()));
    var charge = answer.getCharge();
    print(
        "own write",
        entry("status", charge.getStatus().name()),
        entry(
            "amount",
            fields(
                entry("minor_units", Long.toString(charge.getAmount().getMinorUnits())),
                entry("currency_code", charge.getAmount().getCurrencyCode()))),
        entry("description", charge.getDescription()),
        entry("metadata", charge.getMetadataMap()),
        entry("is_shown", answer.getAsOfPosition() >= first.getPosition()));
  }

  private void int64AndUnknownValues() throws InterruptedException, TimeoutException {
    var rupiah = Money.newBuilder().setMinorUnits(999_999_999_999L).setCurrencyCode("IDR").build();
    var large = charge(order("tour-4").setAmount(rupiah).build());
    var shown =
        query(
            () ->
                queries.getCharge(
                    GetChargeRequest.newBuilder()
                        .setIdempotencyKey("tour-4")
                        .setMinPosition(large.getPosition())
                        .setJournalId(large.getJournalId())
                        .build()));
    print(
        "large amount",
        entry("minor_units", Long.toString(shown.getCharge().getAmount().getMinorUnits())));
    var bytes = HexFormat.of().parseHex("1063288180808080808010c23e0178");
    try {
      var later = ChargeResponse.parseFrom(bytes);
      // getStatus() is UNRECOGNIZED here; only getStatusValue() keeps the number.
      print(
          "unknown values",
          entry("status", later.getStatusValue()),
          entry("position", Long.toString(later.getPosition())));
    } catch (InvalidProtocolBufferException error) {
      throw new AssertionError(error);
    }
  }

  private OperationOutcome whatFollowsAHold() throws InterruptedException, TimeoutException {
    var manual = CaptureMode.CAPTURE_MODE_MANUAL;
    var hold = charge(order("tour-5").setAmount(eur(5000)).setCapture(manual).build());
    print("hold", entry("status", hold.getStatus().name()));
    var capture =
        CaptureRequest.newBuilder()
            .setIdempotencyKey("tour-capture")
            .setChargeId(hold.getChargeId())
            .setAmount(eur(3000))
            .build();
    printOperation("capture", operation(() -> commands.capture(capture).getOutcome()));
    var rest =
        VoidRequest.newBuilder()
            .setIdempotencyKey("tour-void")
            .setChargeId(hold.getChargeId())
            .build();
    printOperation("void", operation(() -> commands.void_(rest).getOutcome()));
    var refund = RefundRequest.newBuilder().setChargeId(hold.getChargeId());
    var one =
        refund
            .setIdempotencyKey("tour-refund")
            .setAmount(eur(1000))
            .setReason("one of three")
            .build();
    var refunded = operation(() -> commands.refund(one).getOutcome());
    printOperation("refund", refunded);
    var all = refund.setIdempotencyKey("tour-too-much").setAmount(eur(2001)).setReason("").build();
    var tooMuch = refusal(() -> commands.refund(all));
    print(
        "too much",
        entry("code", tooMuch.code().value()),
        entry("reason", tooMuch.reason()),
        entry("advice", tooMuch.advice()),
        entry("left", tooMuch.metadata().getOrDefault("left", "")));
    return refunded;
  }

  private void customer() throws InterruptedException, TimeoutException {
    var charge = charge(order("tour-6").setCard(card("tok_3ds")).build());
    print(
        "customer",
        entry("status", charge.getStatus().name()),
        entry("has_url", !charge.getAction().getUrl().isEmpty()));
    var left =
        VoidRequest.newBuilder()
            .setIdempotencyKey("tour-left")
            .setChargeId(charge.getChargeId())
            .build();
    var outcome = operation(() -> commands.void_(left).getOutcome());
    print("call off", entry("status", outcome.getStatus().name()));
  }

  private void watch() throws InterruptedException, TimeoutException {
    var order = order("tour-7").setCard(card("tok_slow")).build();
    var charge =
        Retry.untilSettled(
            () -> commands.withDeadlineAfter(300, MILLISECONDS).charge(order), answer -> false);
    var request =
        WatchChargeRequest.newBuilder()
            .setChargeId(charge.getChargeId())
            .setMinPosition(charge.getPosition())
            .setJournalId(charge.getJournalId())
            .build();
    var seen = new ArrayList<ChargeStatus>();
    Retry.untilSettled(
        () -> {
          follow(request, seen);
          return seen;
        },
        statuses ->
            statuses.isEmpty()
                || statuses.get(statuses.size() - 1) == ChargeStatus.CHARGE_STATUS_PENDING);
    print(
        "watch",
        entry("first", seen.get(0).name()),
        entry("last", seen.get(seen.size() - 1).name()));
  }

  /** Adds the statuses that a stream tells, until one is not PENDING or the stream ends. */
  private void follow(WatchChargeRequest request, List<ChargeStatus> seen) {
    // The end of the context is the end of the stream: the client cancels it.
    try (var context = Context.current().withCancellation()) {
      context.run(
          () -> {
            var changes = queries.watchCharge(request);
            while (changes.hasNext()) {
              seen.add(changes.next().getCharge().getStatus());
              if (seen.get(seen.size() - 1) != ChargeStatus.CHARGE_STATUS_PENDING) {
                return;
              }
            }
          });
    }
  }

  private void pages() throws InterruptedException, TimeoutException {
    var last = ChargeResponse.getDefaultInstance();
    for (var number = 1; number <= 5; number++) {
      last = charge(order("tour-page-" + number).setUserId("tour-pages").build());
    }
    var list =
        ListChargesRequest.newBuilder()
            .setUserId("tour-pages")
            .setPageSize(2)
            .setMinPosition(last.getPosition())
            .setJournalId(last.getJournalId());
    var pages = new ArrayList<List<String>>();
    do {
      var page = query(() -> queries.listCharges(list.build()));
      pages.add(page.getChargesList().stream().map(Charge::getIdempotencyKey).toList());
      list.setPageToken(page.getNextPageToken());
    } while (!list.getPageToken().isEmpty());
    print("pages", entry("pages", pages));
  }

  private void history(ChargeResponse first) throws InterruptedException, TimeoutException {
    var history =
        query(
            () ->
                queries.getChargeHistory(
                    GetChargeHistoryRequest.newBuilder()
                        .setIdempotencyKey("tour-1")
                        .setMinPosition(first.getPosition())
                        .setJournalId(first.getJournalId())
                        .build()));
    var events = history.getEntriesList().stream().map(HistoryEntry::getEvent).toList();
    print("history", entry("events", events));
  }

  private void summary(OperationOutcome refund) throws InterruptedException, TimeoutException {
    var summary =
        query(
            () ->
                queries.getUserSummary(
                    GetUserSummaryRequest.newBuilder()
                        .setUserId("tour")
                        .setMinPosition(refund.getPosition())
                        .setJournalId(refund.getJournalId())
                        .build()));
    var currencies = new LinkedHashMap<String, Object>();
    for (var sums : summary.getCurrenciesList()) {
      currencies.put(
          sums.getCurrencyCode(),
          fields(
              entry("charged", Long.toString(sums.getChargedMinorUnits())),
              entry("refunded", Long.toString(sums.getRefundedMinorUnits())),
              entry("net", Long.toString(sums.getNetMinorUnits())),
              entry("held", Long.toString(sums.getHeldMinorUnits())),
              entry("declined", Long.toString(sums.getDeclinedMinorUnits()))));
    }
    print("summary", entry("currencies", currencies));
  }

  private ChargeResponse charge(ChargeRequest request)
      throws InterruptedException, TimeoutException {
    return Retry.untilSettled(
        () -> commands.charge(request),
        answer -> answer.getStatus() == ChargeStatus.CHARGE_STATUS_PENDING);
  }

  private OperationOutcome operation(Supplier<OperationOutcome> call)
      throws InterruptedException, TimeoutException {
    return Retry.untilSettled(
        call, outcome -> outcome.getStatus() == OperationStatus.OPERATION_STATUS_PENDING);
  }

  private <A> A query(Supplier<A> call) throws InterruptedException, TimeoutException {
    return Retry.untilSettled(call, answer -> false);
  }

  private Refusal refusal(Supplier<?> call) throws InterruptedException, TimeoutException {
    try {
      Retry.untilSettled(call, answer -> false);
    } catch (StatusRuntimeException error) {
      return Refusal.of(error);
    }
    throw new IllegalStateException("the service took what it should refuse");
  }

  private static ChargeRequest umbrella(Money price) {
    return order("tour-1")
        .setAmount(price)
        .setDescription("one umbrella")
        .putMetadata("order", "1001")
        .build();
  }

  private static ChargeRequest.Builder order(String key) {
    return ChargeRequest.newBuilder()
        .setIdempotencyKey(key)
        .setUserId("tour")
        .setCard(card("tok_visa"))
        .setAmount(PRICE);
  }

  private static Card card(String token) {
    return Card.newBuilder().setToken(token).setBrand("visa").setLast4("4242").build();
  }

  private static Money eur(long minorUnits) {
    return Money.newBuilder().setMinorUnits(minorUnits).setCurrencyCode("EUR").build();
  }

  private void printOperation(String step, OperationOutcome outcome) {
    print(
        step,
        entry("status", outcome.getStatus().name()),
        entry("minor_units", Long.toString(outcome.getAmount().getMinorUnits())));
  }

  @SafeVarargs
  private void print(String step, Map.Entry<String, ?>... members) {
    var line = new LinkedHashMap<String, Object>();
    line.put("step", step);
    line.putAll(fields(members));
    out.println(JSON.toJson(line));
  }

  @SafeVarargs
  private static Map<String, Object> fields(Map.Entry<String, ?>... members) {
    var fields = new LinkedHashMap<String, Object>();
    for (var member : members) {
      fields.put(member.getKey(), member.getValue());
    }
    return fields;
  }

  private static String setting(String name, String otherwise) {
    var value = System.getenv().getOrDefault(name, "");
    return value.isEmpty() ? otherwise : value;
  }
}
