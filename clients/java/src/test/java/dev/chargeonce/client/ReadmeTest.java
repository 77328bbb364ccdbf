package dev.chargeonce.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class ReadmeTest {
  @ParameterizedTest
  @ValueSource(strings = {"src/main/java/%s/Quickstart.java", "src/test/java/%s/OrderTest.java"})
  void itShowsTheProgramAsItStands(String file) throws IOException {
    var program = Files.readString(Path.of(file.formatted("dev/chargeonce/client")));

    assertTrue(Files.readString(Path.of("README.md")).contains("```java\n" + program + "```"));
  }

  @Test
  void itsPomNamesTheVersionsOfThisOne() throws IOException {
    var pom = Files.readString(Path.of("pom.xml"));
    var others =
        Files.readString(Path.of("README.md"))
            .lines()
            .map(String::strip)
            .filter(line -> line.startsWith("<version>") && !pom.contains(line))
            .toList();

    assertEquals(List.of(), others);
  }
}
