package dev.chargeonce.client;

import static java.util.concurrent.TimeUnit.SECONDS;

import com.google.gson.Gson;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeoutException;
import org.junit.jupiter.api.extension.ExtensionContext;
import org.junit.jupiter.api.extension.ParameterContext;
import org.junit.jupiter.api.extension.ParameterResolver;

/**
 * A bank and both servers with an empty journal, in a process of its own. A test class with
 * {@code @ExtendWith(Sandbox.Extension.class)} gets it as a parameter of its constructor or of a
 * test:
 *
 * <pre>{@code
 * ChargeTest(Sandbox sandbox) {
 *   channel = Channels.plaintext(sandbox.command());
 * }
 * }</pre>
 *
 * <p>All tests of a run share one, so each takes keys of its own. The environment variable
 * CHARGEONCE_SANDBOX may name the command that starts it.
 */
public final class Sandbox implements AutoCloseable {
  private static final Duration START = Duration.ofSeconds(60);
  private static final Duration STOP = Duration.ofSeconds(20);

  private final Process process;
  private final Addresses addresses;

  private Sandbox(Process process, Addresses addresses) {
    this.process = process;
    this.addresses = addresses;
  }

  /**
   * Starts a sandbox, and returns when its servers serve.
   *
   * @param options of {@code chargeonce sandbox}
   * @throws IOException if it does not start; its reason is on standard error
   */
  public static Sandbox start(String... options) throws IOException, InterruptedException {
    var words = new ArrayList<>(commandLine());
    words.addAll(List.of(options));
    var process = new ProcessBuilder(words).redirectError(ProcessBuilder.Redirect.INHERIT).start();
    try {
      // It prints one line, when all serve; an end of the output means that it could not.
      var line =
          CompletableFuture.supplyAsync(() -> readLine(process.inputReader()))
              .get(START.toSeconds(), SECONDS);
      if (line != null) {
        return new Sandbox(process, new Gson().fromJson(line, Addresses.class));
      }
    } catch (ExecutionException | TimeoutException error) {
      process.destroyForcibly();
      throw new IOException("the sandbox does not start", error);
    }
    throw new IOException("the sandbox ended with exit status " + process.waitFor());
  }

  /** The address of the command server, HOST:PORT. */
  public String command() {
    return addresses.command;
  }

  /** The address of the query server, HOST:PORT. */
  public String query() {
    return addresses.query;
  }

  /** The address of the mock bank, where faults are ordered and its statement is read. */
  public URI bank() {
    return URI.create(addresses.bank);
  }

  /**
   * Reads from the bank's statement what it did for a charge: its side of the truth.
   *
   * @throws IOException if the bank cannot be asked
   */
  public List<Movement> movements(String chargeId) throws IOException, InterruptedException {
    var request =
        HttpRequest.newBuilder(bank().resolve("/statement")).timeout(Duration.ofSeconds(10));
    var answer =
        HttpClient.newHttpClient().send(request.build(), HttpResponse.BodyHandlers.ofString());
    return new Gson()
        .fromJson(answer.body(), Statement.class).movements.stream()
            .filter(movement -> movement.reference.equals(chargeId))
            .toList();
  }

  /**
   * Orders a fault of the bank: see {@code docs/mock-bank.md}.
   *
   * @param fault such as {"on": "execute", "fault": "delay", "seconds": 2}
   * @throws IOException if the bank cannot be asked, or refuses
   */
  public void order(String fault) throws IOException, InterruptedException {
    var request =
        HttpRequest.newBuilder(bank().resolve("/faults"))
            .timeout(Duration.ofSeconds(10))
            .POST(HttpRequest.BodyPublishers.ofString(fault));
    var answer =
        HttpClient.newHttpClient().send(request.build(), HttpResponse.BodyHandlers.ofString());
    if (answer.statusCode() >= 300) {
      throw new IOException("the bank answers " + answer.statusCode() + ": " + answer.body());
    }
  }

  /** Ends the sandbox at once, as kill -9 does. The files of an option --folder stay. */
  public void kill() throws InterruptedException {
    process.destroyForcibly().waitFor();
  }

  /** Stops the sandbox and removes its files. It ends by itself when this JVM ends. */
  @Override
  public void close() {
    process.destroy();
    try {
      if (!process.waitFor(STOP.toSeconds(), SECONDS)) {
        process.destroyForcibly();
      }
    } catch (InterruptedException error) {
      process.destroyForcibly();
      Thread.currentThread().interrupt();
    }
  }

  private static List<String> commandLine() {
    var given = System.getenv().getOrDefault("CHARGEONCE_SANDBOX", "").strip();
    if (!given.isEmpty()) {
      return List.of(given.split("\\s+"));
    }
    var built = Path.of("../../.venv/bin/chargeonce").toAbsolutePath();
    return List.of(Files.isExecutable(built) ? built.toString() : "chargeonce", "sandbox");
  }

  private static String readLine(BufferedReader output) {
    try {
      return output.readLine();
    } catch (IOException error) {
      throw new UncheckedIOException(error);
    }
  }

  /**
   * One movement of money at the bank.
   *
   * @param reference the charge's id
   * @param kind charge, capture, refund and the like
   * @param minor_units the amount, in minor units
   */
  public record Movement(
      String transaction_id,
      String reference,
      String kind,
      long minor_units,
      String currency_code) {}

  private record Statement(List<Movement> movements) {}

  private record Addresses(String command, String query, String bank) {}

  /** Gives a sandbox to the tests, and stops it after the last of them. */
  public static final class Extension implements ParameterResolver {
    @Override
    public boolean supportsParameter(ParameterContext parameter, ExtensionContext context) {
      return parameter.getParameter().getType() == Sandbox.class;
    }

    @Override
    public Object resolveParameter(ParameterContext parameter, ExtensionContext context) {
      return context
          .getRoot()
          .getStore(ExtensionContext.Namespace.create(Sandbox.class))
          .computeIfAbsent(Sandbox.class, type -> startUnchecked());
    }

    private static Sandbox startUnchecked() {
      try {
        return start();
      } catch (IOException error) {
        throw new UncheckedIOException(error);
      } catch (InterruptedException error) {
        Thread.currentThread().interrupt();
        throw new IllegalStateException(error);
      }
    }
  }
}
