import { assertEquals, assertThrows } from "@std/assert";
import { parseYamlFile } from "./yaml_text.ts";

const bytes = (text: string) => new TextEncoder().encode(text);

Deno.test("parseYamlFile() reads text with a byte order mark, line ends of Windows, and tabs where they mean nothing", () => {
  assertEquals(parseYamlFile(bytes("\ufeffa:\r\n  b: 1\t# one\r\n\t\r\n")), { a: { b: 1 } });
});

Deno.test("parseYamlFile() says in one line what no record is, however large it would become", () => {
  let bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (let level = 1; level < 12; level++) {
    bomb += `a${level}: &a${level} [${Array(10).fill(`*a${level - 1}`).join(", ")}]\n`;
  }
  const says = (content: Uint8Array, words: RegExp) => {
    const { message } = assertThrows(() => parseYamlFile(content), Error);
    assertEquals([message.includes("\n"), words.test(message)], [false, true], message);
  };
  says(bytes(bomb), /more than 100,000 values/);
  says(bytes("a: &a {inner: *a}"), /nested|unidentified alias/);
  says(bytes("[".repeat(200) + "]".repeat(200)), /nested more than 100 levels/);
  says(bytes("[".repeat(50_000) + "]".repeat(50_000)), /nested more than 100 levels/);
  says(new Uint8Array([0x61, 0x3a, 0x20, 0xe9, 0x0a]), /not UTF-8/); // Latin-1
  says(new Uint8Array([0xff, 0xfe, 0x61, 0, 0x3a, 0]), /not UTF-8/); // UTF-16
  says(bytes("model:\n\tnum_layers: 2\n"), /line 2 is indented by a tab/);
  says(bytes("model: {}\ndata:\n  a: 1\nmodel: {}\n"), /duplicated key at line \d+(, column \d+)?$/);
  says(bytes("a: [1\n"), /flow collection/);
});
