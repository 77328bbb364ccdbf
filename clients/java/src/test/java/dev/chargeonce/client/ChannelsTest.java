package dev.chargeonce.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
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
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** What a channel adds to each call, as a server sees it that loses the first one. */
class ChannelsTest {
  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

  private final List<Long> secondsLeft = new CopyOnWriteArrayList<>();
  private final List<String> tokens = new CopyOnWriteArrayList<>();
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
  void aCallHasADeadlineATokenAndRetries(@TempDir Path folder) throws IOException {
    var token = Files.writeString(folder.resolve("token"), " secret \n");
    var credentials = Channels.withToken(InsecureChannelCredentials.create(), token);
    var channel = Channels.open("127.0.0.1:" + server.getPort(), credentials);
    try {
      var commands = CommandServiceGrpc.newBlockingStub(channel);

      var answer = commands.charge(ChargeRequest.getDefaultInstance());

      assertEquals("second", answer.getChargeId());
      assertEquals(List.of("Bearer secret", "Bearer secret"), tokens);
      assertTrue(secondsLeft.stream().allMatch(left -> left < 15), secondsLeft.toString());

      var longer = commands.withDeadlineAfter(60, TimeUnit.SECONDS);
      longer.charge(ChargeRequest.getDefaultInstance());

      assertTrue(secondsLeft.get(2) >= 15, secondsLeft.toString());
    } finally {
      channel.shutdownNow();
    }
  }

  private final class LosesTheFirstCall extends CommandServiceGrpc.CommandServiceImplBase {
    @Override
    public void charge(ChargeRequest request, StreamObserver<ChargeResponse> answers) {
      if (tokens.size() == 1) {
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
      tokens.add(String.valueOf(headers.get(AUTHORIZATION)));
      return next.startCall(call, headers);
    }
  }
}
