package dev.chargeonce.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.chargeonce.charging.v1.ChargeRequest;
import dev.chargeonce.charging.v1.ChargeResponse;
import dev.chargeonce.charging.v1.CommandServiceGrpc;
import io.grpc.Context;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.InsecureServerCredentials;
import io.grpc.Metadata;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/** What a channel adds to each call, as a server sees it that loses the first one. */
class ChannelsTest {
  private final List<Long> secondsLeft = new CopyOnWriteArrayList<>();
  private Server server;

  @BeforeEach
  void serve() throws IOException {
    server =
        Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create())
            .addService(new LosesTheFirstCall())
            .intercept(new Recorder())
            .build()
            .start();
  }

  @AfterEach
  void stop() {
    server.shutdownNow();
  }

  @Test
  void aCallHasADeadlineAndRetries() {
    var channel = Channels.plaintext("127.0.0.1:" + server.getPort());
    try {
      var commands = CommandServiceGrpc.newBlockingStub(channel);

      var answer = commands.charge(ChargeRequest.getDefaultInstance());

      assertEquals("second", answer.getChargeId());
      assertEquals(2, secondsLeft.size());
      assertTrue(secondsLeft.stream().allMatch(left -> left < 15), secondsLeft.toString());

      var longer = commands.withDeadlineAfter(60, TimeUnit.SECONDS);
      longer.charge(ChargeRequest.getDefaultInstance());

      assertTrue(secondsLeft.get(2) >= 15, secondsLeft.toString());
    } finally {
      channel.shutdownNow();
    }
  }

  @Test
  void aTokenIsNeverSentWithoutTls() {
    var file = Path.of("token");

    assertThrows(
        IllegalArgumentException.class,
        () -> Channels.withToken(InsecureChannelCredentials.create(), file));
  }

  @Test
  void eachCallTriesToConnect() throws IOException {
    var tries = new AtomicInteger();
    try (var down = new ServerSocket(0, 50, InetAddress.getLoopbackAddress())) {
      var acceptor = new Thread(() -> hangUp(down, tries));
      acceptor.start();
      var channel = Channels.plaintext("127.0.0.1:" + down.getLocalPort());
      var commands = CommandServiceGrpc.newBlockingStub(channel);
      try {
        for (var call = 1; call <= 20; call++) {
          var inTime = commands.withDeadlineAfter(200, TimeUnit.MILLISECONDS);
          assertThrows(
              StatusRuntimeException.class,
              () -> inTime.charge(ChargeRequest.getDefaultInstance()));
        }
      } finally {
        channel.shutdownNow();
      }
    }

    assertTrue(tries.get() > 10, tries + " tries");
  }

  private static void hangUp(ServerSocket down, AtomicInteger tries) {
    try {
      while (true) {
        down.accept().close();
        tries.incrementAndGet();
      }
    } catch (IOException closed) {
      // The test is over.
    }
  }

  private final class LosesTheFirstCall extends CommandServiceGrpc.CommandServiceImplBase {
    @Override
    public void charge(ChargeRequest request, StreamObserver<ChargeResponse> answers) {
      if (secondsLeft.size() == 1) {
        answers.onError(Status.UNAVAILABLE.asRuntimeException());
      } else {
        answers.onNext(ChargeResponse.newBuilder().setChargeId("second").build());
        answers.onCompleted();
      }
    }
  }

  private final class Recorder implements ServerInterceptor {
    @Override
    public <Q, A> ServerCall.Listener<Q> interceptCall(
        ServerCall<Q, A> call, Metadata headers, ServerCallHandler<Q, A> next) {
      var deadline = Context.current().getDeadline();
      secondsLeft.add(deadline == null ? Long.MAX_VALUE : deadline.timeRemaining(TimeUnit.SECONDS));
      return next.startCall(call, headers);
    }
  }
}
