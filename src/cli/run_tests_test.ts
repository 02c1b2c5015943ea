import { assertEquals, assertStringIncludes } from "@std/assert";
import { formatCounts, readCounts } from "./run_tests.ts";
import { denoCommand } from "./self.ts";

Deno.test("readCounts() reads the last summary, coloured or not, and nothing else", () => {
  assertEquals(readCounts("ok | 3 passed | 0 failed (1s)\nFAILED | 12 passed (4 steps) | 2 failed (1 step) (5s)\n"), {
    passed: 12,
    failed: 2,
    skipped: 0,
  });
  assertEquals(
    readCounts(
      "\x1b[0m\x1b[32mok\x1b[0m | 1 passed | 0 failed | 7 ignored (2 steps) \x1b[0m\x1b[38;5;245m(70ms)\x1b[0m",
    ),
    { passed: 1, failed: 0, skipped: 7 },
  );
  assertEquals(readCounts("error: no test modules found\na test says 3 passed | 0 failed"), undefined);
});

Deno.test("formatCounts() names skipped tests only where there are some", () => {
  assertEquals(formatCounts({ passed: 2, failed: 1, skipped: 0 }), "2 passed, 1 failed");
  assertEquals(formatCounts({ passed: 2, failed: 0, skipped: 3 }), "2 passed, 0 failed, 3 skipped");
});

/** Runs the test command as a user who stands in `folder` and names these files. */
async function runTests(folder: string, ...files: string[]): Promise<{ code: number; lines: string[] }> {
  const { code, stdout } = await new Deno.Command(denoCommand(), {
    args: [
      "run",
      "--quiet",
      "--no-prompt",
      "--allow-read",
      "--allow-env",
      "--allow-run=deno",
      import.meta.resolve("./run_tests.ts"),
      ...files,
    ],
    env: { INIT_CWD: folder },
    stderr: "null",
  }).output();
  return { code, lines: new TextDecoder().decode(stdout).split("\n") };
}

Deno.test("the test command counts in its last line, in plain text, and fails where a test or an example does", async () => {
  const folder = await Deno.makeTempDir({ prefix: "troupe tests " });
  try {
    await Deno.writeTextFile(
      `${folder}/a b_test.ts`,
      `Deno.test("good", async (t) => { await t.step("step", () => {}); });
       Deno.test("bad", () => { throw new Error("so it is"); });
       Deno.test.ignore("later", () => {});
       Deno.test("good too", () => {});`,
    );
    await Deno.writeTextFile(
      `${folder}/example.ts`,
      "/**\n * ```ts\n * console.assert(Math.max(1, 2) === 3);\n * ```\n */\nexport const x = 1;\n",
    );
    const both = await runTests(folder, "a b_test.ts", "example.ts");
    assertEquals(both.lines.slice(-3), ["", "2 passed, 2 failed, 1 skipped", ""]);
    assertEquals(both.code, 1);
    assertStringIncludes(both.lines.join("\n"), "so it is");
    assertEquals(both.lines.some((line) => line.includes("\x1b")), false);

    const good = await runTests(folder, "a b_test.ts", "--filter=/^good/");
    assertEquals([good.code, good.lines.at(-2)], [0, "2 passed, 0 failed"]);

    const none = await runTests(folder, "missing_test.ts");
    assertEquals([none.code, none.lines.at(-2)], [1, "0 passed, 1 failed"]);
    assertStringIncludes(none.lines[0]!, "There is no file missing_test.ts");
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
