package dev.chargeonce.client;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * An error, decoded. Reason and advice are words, not enums: later versions of the service may add
 * some.
 *
 * <p>What the service refuses, it refuses as it is, in this call. Unless the advice is USE_NEW_KEY,
 * an earlier call with the key may have moved money.
 *
 * @param code the code of gRPC
 * @param reason the service's reason, such as IDEMPOTENCY_KEY_REUSED; empty if the error is gRPC's
 *     own, such as a lost connection
 * @param advice what to do next: RETRY_SAME_KEY, USE_NEW_KEY, ASK_STATUS, DO_NOT_RETRY; empty if
 *     the error is gRPC's own
 * @param metadata all metadata of the reason, the advice included
 * @param retryAfter when to try again, if the service says so
 * @param violations the names of the fields that are at fault, sorted
 */
public record Refusal(
    Status.Code code,
    String reason,
    String advice,
    Map<String, String> metadata,
    Optional<Duration> retryAfter,
    List<String> violations) {
  private static final String DOMAIN = "charging.v1";

  /** Decodes the details of an error. */
  public static Refusal of(StatusRuntimeException error) {
    var status = StatusProto.fromThrowable(error);
    List<Any> details = status == null ? List.of() : status.getDetailsList();
    var info =
        detail(details, ErrorInfo.class)
            .filter(found -> found.getDomain().equals(DOMAIN))
            .orElse(ErrorInfo.getDefaultInstance());
    return new Refusal(
        error.getStatus().getCode(),
        info.getReason(),
        info.getMetadataOrDefault("advice", ""),
        info.getMetadataMap(),
        detail(details, RetryInfo.class).map(RetryInfo::getRetryDelay).map(Refusal::duration),
        detail(details, BadRequest.class).stream()
            .flatMap(fault -> fault.getFieldViolationsList().stream())
            .map(BadRequest.FieldViolation::getField)
            .sorted()
            .toList());
  }

  /**
   * Whether the same request, with the same key, is the next step. After an error of gRPC's own
   * nobody knows whether it was executed; to send it again is safe, and tells.
   */
  public boolean isRetried() {
    if (reason.isEmpty()) {
      return true;
    }
    return switch (advice) {
      // Of a query, NOT_FOUND has this advice for the charge: another query would only wait.
      case "RETRY_SAME_KEY" -> code != Status.Code.NOT_FOUND;
      case "USE_NEW_KEY", "DO_NOT_RETRY" -> false;
      // ASK_STATUS, and advice of a later contract counts as that: a query that cannot tell yet.
      default ->
          code == Status.Code.UNAVAILABLE
              || code == Status.Code.RESOURCE_EXHAUSTED
              || code == Status.Code.INTERNAL;
    };
  }

  private static <T extends com.google.protobuf.Message> Optional<T> detail(
      List<Any> details, Class<T> type) {
    for (var detail : details) {
      if (detail.is(type)) {
        try {
          return Optional.of(detail.unpack(type));
        } catch (InvalidProtocolBufferException damaged) {
          return Optional.empty();
        }
      }
    }
    return Optional.empty();
  }

  private static Duration duration(com.google.protobuf.Duration sent) {
    return Duration.ofSeconds(sent.getSeconds(), sent.getNanos());
  }
}
