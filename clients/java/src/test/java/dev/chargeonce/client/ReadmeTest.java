package dev.chargeonce.client;

import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class ReadmeTest {
  @ParameterizedTest
  @ValueSource(strings = {"src/main/java/%s/Quickstart.java", "src/test/java/%s/OrderTest.java"})
  void itShowsTheProgramAsItStands(String file) throws IOException {
    var program = Files.readString(Path.of(file.formatted("dev/chargeonce/client")));

    assertTrue(Files.readString(Path.of("README.md")).contains("```java\n" + program + "```"));
  }
}
