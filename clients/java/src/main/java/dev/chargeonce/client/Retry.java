package dev.chargeonce.client;

import io.grpc.StatusRuntimeException;
import java.time.Duration;
import java.util.concurrent.TimeoutException;
import java.util.function.Predicate;
import java.util.function.Supplier;

/** The rule for every call: when in doubt, the same request again with the same key. */
public final class Retry {
  private static final Duration PAUSE = Duration.ofMillis(500);
  private static final Duration PATIENCE = Duration.ofSeconds(60);

  private Retry() {}

  /**
   * Repeats a call until it has a result: while the answer is pending, and after errors that leave
   * the outcome unknown or that pass. It repeats half a second later, or when the service says.
   *
   * @param call sends one request, the same each time, with a deadline
   * @param isPending whether an answer tells no outcome yet
   * @throws StatusRuntimeException an error that is the result; {@link Refusal} decodes it
   * @throws TimeoutException after 60 seconds; the charge goes on, and the same key finds it later
   */
  public static <A> A untilSettled(Supplier<A> call, Predicate<A> isPending)
      throws InterruptedException, TimeoutException {
    var begun = System.nanoTime();
    while (true) {
      var pause = PAUSE;
      Object seen;
      try {
        var answer = call.get();
        if (!isPending.test(answer)) {
          return answer;
        }
        seen = "PENDING";
      } catch (StatusRuntimeException error) {
        var refusal = Refusal.of(error);
        if (!refusal.isRetried()) {
          throw error;
        }
        pause = refusal.retryAfter().orElse(PAUSE);
        seen = error.getStatus().getCode();
      }
      if (System.nanoTime() - begun > PATIENCE.toNanos()) {
        throw new TimeoutException("no result in " + PATIENCE.toSeconds() + " s, last " + seen);
      }
      Thread.sleep(pause.toMillis());
    }
  }
}
