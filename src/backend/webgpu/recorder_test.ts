import { assertEquals } from "@std/assert";
import { type Copy, type Extent, type Recordable, Recorder } from "./recorder.ts";

/** A device that notes the objects it makes, what is recorded into which encoder, and what it is handed. */
function noting() {
  const notes: string[] = [], counts = { encoder: 0, pass: 0 };
  const submitted: string[][] = [];
  const device = {
    createCommandEncoder() {
      const commands: string[] = [];
      counts.encoder++;
      notes.push("encoder");
      return {
        beginComputePass() {
          counts.pass++;
          notes.push("pass");
          return {
            setPipeline: ({ name }: { name: string }) => commands.push(name),
            setBindGroup() {},
            dispatchWorkgroups() {},
            end() {},
          };
        },
        copyBufferToBuffer: () => (notes.push("copy"), commands.push("copy")),
        finish: () => (notes.push("commands"), commands),
      };
    },
    queue: { submit: ([commands]: string[][]) => (notes.push("submit"), submitted.push(commands)) },
  };
  const recorder = new Recorder(device as unknown as GPUDevice, () => {});
  /** The first list after a read-back is handed over at once; this comes before what is tested. */
  const begin = () => (recorder.add(list("first")), notes.splice(0), submitted.splice(0));
  const nowhere = {} as GPUBuffer;
  const readBack = () => recorder.flushWith((encoder) => encoder.copyBufferToBuffer(nowhere, 0, nowhere, 0, 4));
  return { notes, counts, submitted, recorder, begin, readBack };
}

interface ListOptions {
  readonly dispatches?: number;
  readonly brief?: boolean;
  readonly buffers?: readonly GPUBuffer[];
  readonly uses?: readonly Extent[];
}
function list(name: string, { dispatches = 1, brief = false, buffers = [], uses = [] }: ListOptions = {}): Recordable {
  const pipeline = { name } as unknown as GPUComputePipeline;
  return {
    buffers: new Set(buffers),
    brief,
    record(part) {
      part.before(uses);
      for (let i = 0; i < dispatches; i++) part.dispatch(pipeline, {} as GPUBindGroup, [1, 1, 1]);
    },
  };
}
const copying = (copy: Copy): Recordable => ({
  buffers: new Set(),
  brief: true,
  record: (part) => part.copyLater([copy]),
});

const turn = () => new Promise((resolve) => setImmediate(resolve));
const extent = (buffer: GPUBuffer, offset = 0) => ({ buffer, offset, bytes: 16 });

Deno.test("the first list goes to the queue at once; later ones share an encoder and a pass, by the turn's end", async () => {
  const { notes, recorder } = noting();
  for (const name of "abcd") recorder.add(list(name));
  assertEquals(notes, ["encoder", "pass", "commands", "submit", "encoder", "pass"]);
  await turn();
  assertEquals(notes.slice(6), ["commands", "submit"]);
  recorder.flush();
  assertEquals(notes.length, 8); // nothing left
});

Deno.test("a brief first list waits for the next one, past the turn's end, and shares its encoder and pass", async () => {
  const { notes, submitted, recorder, readBack } = noting();
  recorder.add(list("update", { brief: true }));
  await turn();
  assertEquals(notes, ["encoder", "pass"]);
  for (const name of ["forward", "backward"]) recorder.add(list(name));
  await turn();
  recorder.add(list("norm"));
  readBack();
  assertEquals(submitted, [["update", "forward", "backward"], ["norm", "copy"]]);
  recorder.add(list("update", { brief: true }));
  recorder.flush();
  assertEquals(submitted.slice(2), [["update"]]);
});

Deno.test("a long list goes to the queue before the turn ends, so that the device has work", () => {
  const { notes, recorder, begin } = noting();
  begin();
  recorder.add(list("long", { dispatches: 128 }));
  assertEquals(notes.at(-1), "submit");
  recorder.add(list("next", { dispatches: 128 }));
  assertEquals(notes.at(-1), "pass"); // it has work now: the rest gathers
  recorder.flush();
});

Deno.test("a copy waits until something touches what it copies, or the end", () => {
  const { notes, recorder, begin } = noting(), [a, b, c] = [{}, {}, {}] as GPUBuffer[];
  begin();
  recorder.add(list("a"));
  recorder.add(copying({ source: extent(a), target: extent(b) }));
  recorder.add(list("beside it, and elsewhere", { uses: [extent(a, 16), extent(c)] }));
  assertEquals(notes, ["encoder", "pass"]);
  recorder.add(list("on it", { uses: [extent(c), extent(b, 8)] }));
  assertEquals(notes, ["encoder", "pass", "copy", "pass"]);
  recorder.add(copying({ source: extent(a), target: extent(b) }));
  recorder.flush();
  assertEquals(notes.slice(4), ["copy", "commands", "submit"]);
});

Deno.test("uses() knows the buffers of what is not handed over", () => {
  const { recorder, begin } = noting(), [a, b] = [{}, {}] as GPUBuffer[];
  begin();
  recorder.add(list("with a", { buffers: [a] }));
  assertEquals([recorder.uses(a), recorder.uses(b)], [true, false]);
  recorder.flush();
  assertEquals(recorder.uses(a), false);
});

Deno.test("what was recorded before disposal is dropped", async () => {
  const { notes, recorder, begin } = noting();
  begin();
  recorder.add(list("a"));
  recorder[Symbol.dispose]();
  await turn();
  assertEquals(notes, ["encoder", "pass"]);
});

Deno.test("rounds of brief lists are recorded ahead as a whole, in one encoder and pass", async () => {
  const { counts, submitted, recorder, readBack } = noting();
  const lists = ["update", "forward", "backward"].map((name) => list(name, { brief: true }));
  for (let i = 0; i < 8; i++) {
    for (const list of lists) {
      recorder.add(list);
      if (i % 2 === 1 && list === lists[0]) await turn(); // as where data comes late
    }
    readBack();
    await Promise.resolve();
    assertEquals(submitted.splice(0), [["update", "forward", "backward", "copy"]]);
  }
  assertEquals(counts, { encoder: 9, pass: 9 });
});

/** Rounds of these lists, each ended by a read-back, until one is recorded ahead: its encoder and pass are there. */
async function foreseen(lists: readonly Recordable[]) {
  const { counts, submitted, recorder, readBack, notes } = noting();
  const round = async (lists: readonly Recordable[]) => {
    recorder.add(list("update"));
    lists.forEach((list) => recorder.add(list));
    readBack();
    await Promise.resolve();
  };
  for (let i = 0; i < 3; i++) await round(lists);
  assertEquals(notes.slice(-3), ["submit", "encoder", "pass"]);
  Object.assign(counts, { encoder: 0, pass: 0 });
  notes.splice(0);
  submitted.splice(0);
  return { counts, submitted, recorder, readBack, notes, round };
}

Deno.test("rounds that are alike are recorded ahead, and go to the queue as they would have", async () => {
  const lists = [list("forward", { dispatches: 200 }), list("backward"), list("norm")];
  const { submitted, counts, round } = await foreseen(lists);
  await round(lists);
  assertEquals(submitted, [["update"], ["forward", "backward", "norm", "copy"]]); // one for all 200 dispatches
  assertEquals(counts, { encoder: 2, pass: 2 }); // and the next one ahead
});

Deno.test("what comes otherwise than expected is recorded then: in part, another list, or by the turn's end", async () => {
  const lists = ["forward", "backward", "norm"].map((name) => list(name));
  for (
    const other of [lists.slice(0, 2), [...lists, list("more")], [lists[0]!, list("other")], lists.toReversed(), []]
  ) {
    const { submitted, round } = await foreseen(lists), names = (lists: readonly Recordable[]) => lists.map(nameOf);
    await round(other);
    assertEquals(submitted, [["update"], [...names(other), "copy"]]);
  }
  const { submitted, recorder, readBack } = await foreseen(lists);
  recorder.add(list("update"));
  recorder.add(lists[0]!);
  await turn();
  assertEquals(submitted, [["update"], ["forward"]]);
  recorder.add(lists[1]!);
  readBack();
  assertEquals(submitted.slice(2), [["backward", "copy"]]);
});

function nameOf(list: Recordable): string {
  let name = "";
  list.record({ before() {}, dispatch: (pipeline: { name: string }) => name = pipeline.name } as never);
  return name;
}

Deno.test("a read-back between rounds leaves what is expected as it is", async () => {
  const lists = [list("forward"), list("backward")], { submitted, readBack, round, counts } = await foreseen(lists);
  readBack();
  await Promise.resolve();
  await round(lists);
  assertEquals(submitted, [["copy"], ["update"], ["forward", "backward", "copy"]]);
  assertEquals(counts, { encoder: 3, pass: 2 });
});

Deno.test("what is expected is forgotten with a buffer of it, and while nothing shall be recorded ahead", async () => {
  const buffer = {} as GPUBuffer, lists = [list("forward"), list("backward", { buffers: [buffer] })];
  const { submitted, recorder, readBack, counts } = await foreseen(lists);
  recorder.add(list("update"));
  recorder.add(lists[0]!);
  recorder.release(buffer);
  readBack();
  assertEquals(submitted, [["update"], ["forward", "copy"]]);

  const quiet = await foreseen(lists);
  quiet.recorder.lookAhead(false);
  for (let i = 0; i < 5; i++) await quiet.round(lists);
  assertEquals(quiet.submitted.length, 10);
  assertEquals(quiet.counts.encoder, 10);
  quiet.recorder.lookAhead(true);
  for (let i = 0; i < 5; i++) await quiet.round(lists);
  assertEquals(quiet.counts.encoder, 10 + 11);
  assertEquals(counts.encoder, 2);
});

Deno.test("what was foreseen wrongly again and again is recorded ahead more seldom", async () => {
  const lists = [list("forward"), list("backward")], { counts, round } = await foreseen(lists);
  let ahead = 0;
  for (let i = 0; i < 60; i++) {
    const before = counts.encoder;
    await round(i % 4 === 3 ? [list("other")] : lists);
    if (counts.encoder - before !== 2) ahead++;
  }
  // Three alike, then another: each time at first, then not at all.
  assertEquals(ahead < 6, true, `${ahead}`);
});
