// deno-lint-ignore-file no-control-regex -- terminals are controlled by them
/** What goes where: JSON lines to programs, text to people, and a live line to a terminal. */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { denoCommand } from "../src/cli/self.ts";
import { assertNoStackTrace, curve, inFolder, tinyRecord } from "./processes.ts";

Deno.test("train() with --json writes JSON lines only to standard output, each step once, and text to standard error", () =>
  inFolder(async (folder, processes) => {
    const config = tinyRecord(folder, { data: { valid_every: 3, valid_micro_num: 1 } });
    const ended = await processes.run(["train", "--config", config, "--backend", "cpu", "--json"], { folder });
    assertEquals(ended.code, 0, ended.err);
    const lines = ended.out.trimEnd().split("\n").map((line) => JSON.parse(line));
    const steps = lines.filter((line) => "loss" in line), validations = lines.filter((line) => !("loss" in line));
    assertEquals(
      steps.map(({ step, loss, gradNorm, lr }) => ({ step, loss, gradNorm, lr })),
      curve(folder).filter((
        { loss },
      ) => loss !== undefined),
    );
    assertEquals(steps.map(({ step }) => step), [0, 1, 2, 3, 4, 5]);
    assertEquals(validations.map(({ step_count }) => step_count), [3, 6]);
    assertStringIncludes(ended.err, "Finished after step 6");
    assertStringIncludes(ended.err, "step 6/6");
  }));

Deno.test("every verb explains itself and ends with 0", () =>
  inFolder(async (folder, processes) => {
    const list = await processes.run(["help"], { folder });
    assertEquals(list.code, 0);
    const verbs = [...list.out.matchAll(/^ {2}(\w+) +\S/gm)].map(([, verb]) => verb!);
    assert(verbs.includes("train") && verbs.includes("verify") && verbs.length >= 8, list.out);
    for (const verb of verbs) {
      const ended = await processes.run([verb, "--help"], { folder });
      assertEquals([verb, ended.code, ended.err], [verb, 0, ""]);
      assertMatch(ended.out, new RegExp(`^Usage: troupe ${verb}`));
    }
  }));

/** What stands on a terminal's lines at the end, when a carriage return and "clear the line" do what they do there. */
function screen(text: string): string[] {
  return text.split(/\r?\n/).map((line) => line.split("\x1b[2K").at(-1)!.replaceAll("\r", ""));
}

Deno.test("train() on a terminal draws one live line over itself, above it nothing but sentences", () =>
  inFolder(async (folder) => {
    const found = await new Deno.Command("sh", { args: ["-c", "command -v script"], stdout: "null" }).output();
    if (!found.success) return console.log("skipped: util-linux's script, which makes a terminal, is not there");
    const config = tinyRecord(folder, { data: { total_steps: 40 } }); // kernels that kill_test.ts takes too
    const project = import.meta.resolve("../deno.json").slice("file://".length);
    // XDG_RUNTIME_DIR unset, as in many containers, makes the Vulkan loader write where it should not.
    const command = `stty cols 100; unset XDG_RUNTIME_DIR NO_COLOR; ` +
      `exec '${denoCommand()}' task --quiet --config '${project}' train --config '${config}'`;
    const child = new Deno.Command("sh", {
      args: ["-c", `exec script --quiet --return --command "$0" /dev/null`, command],
      env: { TROUPE_WRITE: `,${folder}`, INIT_CWD: folder, TERM: "xterm" },
      cwd: folder,
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    });
    const { code, stdout, stderr } = await child.output();
    const out = new TextDecoder().decode(stdout), err = new TextDecoder().decode(stderr);
    if (err.includes("failed to create pseudo-terminal")) return console.log(`skipped: ${err.trim()}`);
    assertEquals(code, 0, out + err);
    assertNoStackTrace({ code, out, err });
    assert(!out.includes("XDG_RUNTIME_DIR"), out);
    // Colours, clearing the line, and nothing else that a terminal obeys.
    assertEquals(out.replaceAll(/\x1b\[(2K|\d*m)/g, "").match(/[\x00-\x09\x0b\x0c\x0e-\x1f]/g), null, out);
    const drawn = out.match(/\x1b\[2K[^\n]*?step/g)?.length ?? 0;
    assert(drawn > 3, `the live line was drawn ${drawn} times`);
    const plain = screen(out).map((line) => line.replaceAll(/\x1b\[\d*m/g, ""));
    const live = plain.filter((line) => line.includes("tok/s"));
    assertEquals(live.length, 1, plain.join("\n"));
    assertMatch(live[0]!, /^━+ 100% +step 40\/40 +loss \d+\.\d{4}/);
    assert(plain.every((line) => line.length < 200), "nothing was glued to a line");
    assertMatch(plain[0]!, /^tiny: new run; [\d,]+ parameters/);
    assertMatch(plain.join("\n"), /^Finished after step 40\. Checkpoints: /m);
  }));

Deno.test("train() starts its rank where the dynamic loader is told of folders", () =>
  inFolder(async (folder, processes) => {
    const config = tinyRecord(folder, {});
    const words = ["train", "--config", config, "--backend", "cpu"];
    const ended = await processes.startBy(`LD_LIBRARY_PATH=/usr/local/lib exec "$@"`, words, { folder }).ended;
    assertEquals(ended.code, 0, ended.err);
    assertStringIncludes(ended.err + ended.out, "Finished after step 6");
  }));
