import { assertEquals } from "@std/assert";
import { Recorder } from "./recorder.ts";

/** A device that notes the objects it makes and what it is handed. */
function noting() {
  const notes: string[] = [];
  const note = (text: string, result?: unknown) => (..._: unknown[]) => (notes.push(text), result);
  const pass = { setPipeline() {}, setBindGroup() {}, dispatchWorkgroups() {}, end() {} };
  const encoder = { beginComputePass: note("pass", pass), copyBufferToBuffer: note("copy"), finish: note("commands") };
  const device = { createCommandEncoder: note("encoder", encoder), queue: { submit: note("submit") } };
  const recorder = new Recorder(device as unknown as GPUDevice, () => {});
  const dispatch = () => recorder.dispatch({} as GPUComputePipeline, {} as GPUBindGroup, [1, 1, 1]);
  return { notes, recorder, dispatch };
}

const nothing = new Set<GPUBuffer>();

const turn = () => new Promise((resolve) => setImmediate(resolve));
const extent = (buffer: GPUBuffer, offset = 0) => ({ buffer, offset, bytes: 16 });

Deno.test("the first list goes to the queue at once; later ones share an encoder and a pass, by the turn's end", async () => {
  const { notes, recorder, dispatch } = noting();
  for (let list = 0; list < 4; list++) {
    dispatch();
    recorder.close(nothing);
  }
  assertEquals(notes, ["encoder", "pass", "commands", "submit", "encoder", "pass"]);
  await turn();
  assertEquals(notes.slice(6), ["commands", "submit"]);
  recorder.flush();
  assertEquals(notes.length, 8); // nothing left
});

Deno.test("a long list goes to the queue before the turn ends, so that the device has work", () => {
  const { notes, recorder, dispatch } = noting();
  recorder.flush();
  for (let i = 0; i < 128; i++) dispatch();
  recorder.close(nothing);
  assertEquals(notes.at(-1), "submit");
  for (let i = 0; i < 128; i++) dispatch();
  recorder.close(nothing);
  assertEquals(notes.at(-1), "pass"); // it has work now: the rest gathers
  recorder.flush();
});

Deno.test("a copy waits until something touches what it copies, or the end", () => {
  const { notes, recorder, dispatch } = noting(), [a, b, c] = [{}, {}, {}] as GPUBuffer[];
  dispatch();
  recorder.copyLater([{ source: extent(a), target: extent(b) }]);
  recorder.before([extent(a, 16), extent(c)]); // beside it, and elsewhere
  dispatch();
  assertEquals(notes, ["encoder", "pass"]);
  recorder.before([extent(c), extent(b, 8)]);
  assertEquals(notes, ["encoder", "pass", "copy"]);
  dispatch();
  recorder.copyLater([{ source: extent(a), target: extent(b) }]);
  recorder.flush();
  assertEquals(notes.slice(3), ["pass", "copy", "commands", "submit"]);
});

Deno.test("uses() knows the buffers of what is not handed over", () => {
  const { recorder, dispatch } = noting(), [a, b] = [{}, {}] as GPUBuffer[];
  recorder.flush();
  dispatch();
  recorder.close(new Set([a]));
  assertEquals([recorder.uses(a), recorder.uses(b)], [true, false]);
  recorder.flush();
  assertEquals(recorder.uses(a), false);
});

Deno.test("what was recorded before disposal is dropped", async () => {
  const { notes, recorder, dispatch } = noting();
  recorder.flush();
  dispatch();
  recorder.close(nothing);
  recorder[Symbol.dispose]();
  await turn();
  assertEquals(notes, ["encoder", "pass"]);
});
