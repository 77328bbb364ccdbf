package dev.chargeonce.client;

import static org.junit.jupiter.api.Assertions.assertEquals;

import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.ByteArrayOutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;

@ExtendWith(Sandbox.Extension.class)
class TourTest {
  @Test
  void theTourSeesWhatEveryClientSees(Sandbox sandbox) throws Exception {
    var printed = new ByteArrayOutputStream();
    var command = Channels.plaintext(sandbox.command());
    var query = Channels.plaintext(sandbox.query());
    try {
      new Tour(command, query, new PrintStream(printed, true, StandardCharsets.UTF_8)).take();
    } finally {
      command.shutdownNow();
      query.shutdownNow();
    }

    var expected = steps(Files.readString(Path.of("../tour.jsonl")));
    var seen = steps(printed.toString(StandardCharsets.UTF_8));
    nameCharges(seen, expected);
    assertEquals(expected, seen);
  }

  private static List<JsonObject> steps(String lines) {
    return lines.lines().map(JsonParser::parseString).map(step -> step.getAsJsonObject()).toList();
  }

  /** Puts the names that the expected steps have for charges, such as "<tour-1>", for their ids. */
  private static void nameCharges(List<JsonObject> seen, List<JsonObject> expected) {
    var names = new HashMap<String, String>();
    for (var n = 0; n < Math.min(seen.size(), expected.size()); n++) {
      var id = seen.get(n).get("charge_id");
      var name = expected.get(n).get("charge_id");
      if (id != null && name != null) {
        names.putIfAbsent(id.getAsString(), name.getAsString());
        seen.get(n).addProperty("charge_id", names.get(id.getAsString()));
      }
    }
  }
}
