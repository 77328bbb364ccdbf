package dev.chargeonce.client;

import static org.junit.jupiter.api.Assertions.assertEquals;

import com.google.protobuf.Any;
import com.google.rpc.ErrorInfo;
import io.grpc.Status;
import io.grpc.protobuf.StatusProto;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class RefusalTest {
  @ParameterizedTest
  @CsvSource({
    // code, domain, advice, is retried
    "UNAVAILABLE, charging.v1, RETRY_SAME_KEY, true",
    "NOT_FOUND, charging.v1, RETRY_SAME_KEY, false", // a query that finds nothing
    "UNAVAILABLE, charging.v1, ASK_STATUS, true", // a query: the view is behind
    "RESOURCE_EXHAUSTED, charging.v1, ASK_STATUS, true",
    "INTERNAL, charging.v1, ASK_STATUS, true",
    "ALREADY_EXISTS, charging.v1, ASK_STATUS, false",
    "ALREADY_EXISTS, charging.v1, USE_NEW_KEY, false",
    "UNAVAILABLE, charging.v1, DO_NOT_RETRY, false",
    "UNAVAILABLE, charging.v1, WAIT_FOR_THE_MOON, true", // advice of a later contract
    "ALREADY_EXISTS, charging.v1, WAIT_FOR_THE_MOON, false",
    "ALREADY_EXISTS, charging.v1, '', false",
    "PERMISSION_DENIED, proxy.example, DO_NOT_RETRY, true",
  })
  void theAdviceTellsWhatIsRetried(
      Status.Code code, String domain, String advice, boolean isRetried) {
    var info =
        ErrorInfo.newBuilder().setDomain(domain).setReason("MOON").putMetadata("advice", advice);
    var status =
        com.google.rpc.Status.newBuilder()
            .setCode(code.value())
            .addDetails(Any.pack(info.build()))
            .build();

    var refusal = Refusal.of(StatusProto.toStatusRuntimeException(status));

    assertEquals(isRetried, refusal.isRetried());
  }
}
