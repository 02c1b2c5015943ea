import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { fileURLToPath } from "node:url";
import { join } from "node:path";
import { boxValues, randomIntegers, save, splitAxis, tensors, withTempDir } from "./_testing.ts";
import { wholeBox } from "./box.ts";
import { listCheckpoints, newestUsable, retireOld, verifyCheckpoint } from "./catalog.ts";
import { DiskFullError } from "./durable.ts";
import { beginCheckpoint, saveCheckpoint, wholeEntry } from "./save.ts";
import { openCheckpoint } from "./checkpoint.ts";
import { HuggingFaceFolder, writeHuggingFace } from "./hugging_face.ts";

Deno.test("newestUsable() finds a whole checkpoint after a saver is killed at random moments", () =>
  withTempDir(async (folder) => {
    const random = randomIntegers(Date.now());
    let reached = 0;
    for (let round = 0; round < 6; round++) {
      const child = new Deno.Command(Deno.execPath(), {
        args: [
          "run",
          "--no-prompt",
          "--cached-only",
          "--allow-read",
          `--allow-write=${folder}`,
          fileURLToPath(import.meta.resolve("./_save_loop.ts")),
          folder,
        ],
        stdout: "piped",
        stderr: "inherit",
      }).spawn();
      // Killed some saves after the first, at any point within one.
      const killAfter = 1 + random(6);
      const said: number[] = [];
      let text = "";
      let killed = false;
      for await (const chunk of child.stdout.pipeThrough(new TextDecoderStream())) {
        text += chunk;
        const lines = text.split("\n");
        text = lines.pop()!;
        said.push(...lines.map(Number));
        if (said.length < killAfter || killed) continue;
        killed = true;
        // Not a wait for something to happen: the moment itself is what is drawn.
        await new Promise((resolve) => setTimeout(resolve, random(25)));
        child.kill("SIGKILL");
      }
      const { signal } = await child.status;
      assertEquals(signal, "SIGKILL");
      assert(said[0] === reached + 1 || round > 0 && said[0] > reached, `resumed at ${said[0]} after ${reached}`);
      using checkpoint = await newestUsable(folder, { onSkipped: () => {} });
      assert(checkpoint !== undefined && checkpoint.step >= said.at(-1)!, `${checkpoint?.step} after ${said.at(-1)}`);
      reached = checkpoint.step;
      assertEquals(checkpoint.manifest.state, { position: reached * 8 });
      for (const tensor of tensors) {
        const values = checkpoint.readTensor(tensor.kind, tensor.name);
        assertEquals(values, boxValues(tensor, reached, wholeBox(tensor.shape)));
      }
    }
    // What the kills left behind goes with the next retirement.
    await retireOld(folder, 1);
    assertEquals(listCheckpoints(folder).filter(({ step }) => step <= reached).map(({ status }) => status), [
      "complete",
    ]);
  }));

/** Runs on a file system of 1 MiB, where one can be mounted. */
async function withSmallDisk(run: (folder: string, mount: (folder: string) => Promise<void>) => Promise<void>) {
  const { state } = await Deno.permissions.query({ name: "run", command: "mount" });
  if (state !== "granted") return console.log("skipped: needs --allow-run=mount,umount and root");
  await withTempDir(async (directory) => {
    const mount = async (folder: string) => {
      const args = ["-t", "tmpfs", "-o", "size=1m", "tmpfs", folder];
      const { success, stderr } = await new Deno.Command("mount", { args }).output();
      if (!success) throw new Error(new TextDecoder().decode(stderr));
    };
    try {
      await mount(directory);
    } catch (error) {
      return console.log(`skipped: cannot mount a small file system: ${(error as Error).message.trim()}`);
    }
    try {
      await run(directory, mount);
    } finally {
      await new Deno.Command("umount", { args: ["--recursive", directory] }).output();
    }
  });
}

Deno.test("saveCheckpoint() on a full disk says so, removes its attempt and loses nothing", () =>
  withSmallDisk(async (folder) => {
    const weights = (
      elements: number,
    ) => [wholeEntry("parameter", "w", [elements], new Float32Array(elements).fill(2))];
    const rest = { folder, layout: {}, state: {}, config: "" };
    await saveCheckpoint({ ...rest, step: 1, entries: weights(100_000) });
    const error = await assertRejects(
      () => saveCheckpoint({ ...rest, step: 2, entries: weights(200_000) }),
      DiskFullError,
      "the disk is full: 781 KiB are needed",
    );
    assertEquals(error.bytesNeeded! > 800_000, true);
    if (error.bytesAvailable !== undefined) assertStringIncludes(error.message, "KiB are available");
    assertEquals([...Deno.readDirSync(folder)].map(({ name }) => name), ["1"]);
    await verifyCheckpoint(join(folder, "1"));

    // Full when the manifest comes, after the shards fitted.
    const config = "x".repeat(300_000);
    await assertRejects(
      () => saveCheckpoint({ ...rest, step: 2, entries: weights(100_000), config }),
      DiskFullError,
      "Cannot commit checkpoint",
    );
    assertEquals([...Deno.readDirSync(folder)].map(({ name }) => name), ["1"]);
    using checkpoint = openCheckpoint(join(folder, "1"));
    assertEquals(checkpoint.readTensor("parameter", "w")[99_999], 2);

    // With more room the same run goes on.
    await saveCheckpoint({ ...rest, step: 2, entries: weights(100_000) });
    assertEquals((await retireOld(folder, 1)).removed, [join(folder, "1")]);
  }));

Deno.test("writeHuggingFace() and beginCheckpoint() on a full disk say so and keep what was there", () =>
  withSmallDisk(async (disk) => {
    const folder = join(disk, "model");
    const tensors = (value: number, count: number) =>
      Array.from({ length: count }, (_, i) => (
        { name: `w${i}`, dtype: "F32", shape: [50_000], data: new Float32Array(50_000).fill(value) } as const
      ));
    const options = { config: {}, maxShardBytes: 200_000 };
    await writeHuggingFace(folder, { ...options, tensors: tensors(1, 3) });
    await assertRejects(() => writeHuggingFace(folder, { ...options, tensors: tensors(2, 3) }), DiskFullError);
    assertEquals([...Deno.readDirSync(folder)].length, 5);
    using model = HuggingFaceFolder.open(folder);
    for (const name of model.names) assertEquals(model.readFloat32(name)[49_999], 1);

    const filler = await Deno.open(join(disk, "filler"), { write: true, create: true });
    try {
      await assertRejects(async () => {
        while (true) await filler.write(new Uint8Array(4096));
      });
    } finally {
      filler.close();
    }
    await assertRejects(
      () => beginCheckpoint(join(disk, "none"), 1).then((d) => save(d, 1, splitAxis(0, 1), 1)),
      DiskFullError,
    );
  }));

Deno.test("retireOld() goes on past a folder that the system will not remove", () =>
  withSmallDisk(async (folder, mount) => {
    for (const step of [1, 2, 3]) await save(folder, step, splitAxis(0, 1), 1);
    await Deno.mkdir(join(folder, "2", "busy"));
    await mount(join(folder, "2", "busy"));
    const { removed, failed } = await retireOld(folder, 1);
    assertEquals(removed, [join(folder, "1")]);
    assertEquals(failed.length, 1);
    assertStringIncludes(failed[0], `Cannot remove old checkpoint ${join(folder, "2")}: `);
    assertEquals(listCheckpoints(folder)[0].step, 3);
  }));
