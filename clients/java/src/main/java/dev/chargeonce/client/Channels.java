package dev.chargeonce.client;

import static java.util.concurrent.TimeUnit.SECONDS;

import com.google.gson.Gson;
import com.google.gson.reflect.TypeToken;
import io.grpc.CallCredentials;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ChannelCredentials;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.CompositeChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.TlsChannelCredentials;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.Executor;

/**
 * Channels to the servers. Each has the retries of {@code service-config.json}, and ends a call
 * without a deadline of its own after 15 seconds. One channel serves all threads; shut it down at
 * the end.
 */
public final class Channels {
  private static final long DEADLINE_SECONDS = 15;

  private Channels() {}

  /**
   * Opens a channel without encryption, for a server on this machine.
   *
   * @param address HOST:PORT
   */
  public static ManagedChannel plaintext(String address) {
    return open(address, InsecureChannelCredentials.create());
  }

  /**
   * Opens a channel. It connects with the first call, and again whenever the connection is lost.
   *
   * @param address HOST:PORT
   */
  public static ManagedChannel open(String address, ChannelCredentials credentials) {
    var eachCall = new EachCall();
    var channel =
        Grpc.newChannelBuilder(address, credentials)
            .defaultServiceConfig(serviceConfig())
            .enableRetry()
            // A dead link is found by a ping. The server permits one every 5 s.
            .keepAliveTime(15, SECONDS)
            .keepAliveTimeout(7, SECONDS)
            .intercept(eachCall)
            .build();
    eachCall.channel = channel;
    return channel;
  }

  /**
   * Reads TLS credentials from a folder: {@code ca.crt}, the authorities to trust, and, if the
   * client shows a certificate, {@code tls.crt} and {@code tls.key} (PKCS #8).
   *
   * @throws IOException if a file cannot be read
   */
  public static ChannelCredentials tls(Path folder) throws IOException {
    var builder =
        TlsChannelCredentials.newBuilder().trustManager(folder.resolve("ca.crt").toFile());
    var certificate = folder.resolve("tls.crt");
    if (Files.exists(certificate)) {
      builder.keyManager(certificate.toFile(), folder.resolve("tls.key").toFile());
    }
    return builder.build();
  }

  /**
   * Adds a bearer token to the credentials of a channel. The file is read for each call, so that a
   * new token is seen; a call fails as UNAUTHENTICATED if it cannot be read.
   *
   * @throws IllegalArgumentException if the credentials are those of a channel without encryption
   */
  public static ChannelCredentials withToken(ChannelCredentials credentials, Path file) {
    if (credentials instanceof InsecureChannelCredentials) {
      throw new IllegalArgumentException("a token is never sent without TLS");
    }
    return CompositeChannelCredentials.create(credentials, new BearerToken(file));
  }

  /** The service config as gRPC takes it: JSON objects as maps, and every number as a Double. */
  private static Map<String, ?> serviceConfig() {
    var stream = Channels.class.getResourceAsStream("/service-config.json");
    try (var reader =
        new InputStreamReader(Objects.requireNonNull(stream), StandardCharsets.UTF_8)) {
      return new Gson().fromJson(reader, new TypeToken<Map<String, Object>>() {}.getType());
    } catch (IOException error) {
      throw new UncheckedIOException(error);
    }
  }

  private static final class EachCall implements ClientInterceptor {
    private volatile ManagedChannel channel;

    @Override
    public <Q, A> ClientCall<Q, A> interceptCall(
        MethodDescriptor<Q, A> method, CallOptions options, Channel next) {
      // While a server is away, the pauses between two tries to connect grow to two minutes, and
      // gRPC has no setting for that. Each call begins with a try.
      channel.resetConnectBackoff();
      var hasDeadline = options.getDeadline() != null;
      return next.newCall(
          method, hasDeadline ? options : options.withDeadlineAfter(DEADLINE_SECONDS, SECONDS));
    }
  }

  private static final class BearerToken extends CallCredentials {
    private static final Metadata.Key<String> AUTHORIZATION =
        Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

    private final Path file;

    BearerToken(Path file) {
      this.file = file;
    }

    @Override
    public void applyRequestMetadata(RequestInfo call, Executor executor, MetadataApplier applier) {
      executor.execute(
          () -> {
            try {
              var headers = new Metadata();
              headers.put(AUTHORIZATION, "Bearer " + Files.readString(file).strip());
              applier.apply(headers);
            } catch (IOException error) {
              applier.fail(
                  Status.UNAUTHENTICATED
                      .withDescription("the token's file cannot be read")
                      .withCause(error));
            }
          });
    }
  }
}
