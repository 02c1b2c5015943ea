import { assert, assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import { openBackend } from "../backend/open.ts";
import { feedGroups, gradientsOf, make, network, type NetworkOptions, numbers } from "./_testing.ts";
import { chunkOf, cut, type LayerSpan } from "./cut.ts";
import { Graph } from "./graph.ts";
import { plan as planProgram, type SegmentName } from "./plan.ts";
import { drive, Program, settle } from "./program.ts";

const spans: readonly LayerSpan[] = [{ first: 0, end: 1 }, { first: 1, end: 3 }, { first: 3, end: 4 }];

function chunksOf(options: NetworkOptions, { split = false, recompute = false } = {}) {
  const pass = () => {
    const graph = new Graph(), outputs = { ...network(graph, options) };
    return { outputs, ...cut(graph, spans, spans.map((_, index) => index)) };
  };
  const training = pass(), evaluation = pass();
  const chunks = spans.map((_, index) =>
    chunkOf({
      training: { piece: training.pieces[index]!, outputs: training.outputs },
      evaluation: { piece: evaluation.pieces[index]!, outputs: evaluation.outputs },
      recompute: () => recompute,
      split,
    })
  );
  return { chunks, ...training };
}

for (const head of ["tied", "own"] as const) {
  for (const [split, recompute] of [[false, false], [true, false], [true, true]]) {
    const what = `head ${head}${split ? ", backward in halves" : ""}${recompute ? ", recomputed" : ""}`;
    Deno.test(`cut() makes pieces that give the loss and gradients of the whole: ${what}`, async () => {
      using backend = await openBackend("cpu");
      const options = { head, layers: 4 };
      using whole = await make((graph) => network(graph, options), backend);
      const { chunks } = chunksOf(options, { split, recompute });
      const plan = planProgram({ chunks, limits: backend.traits.limits });
      assertEquals(
        plan.parameters.map(({ name }) => name).sort(),
        whole.plan.parameters.map(({ name }) => name).sort(),
      );
      using program = await Program.create(backend, plan, { microBatches: 1 });
      for (const { name, bytes } of plan.parameters) {
        program.writeParameter("parameter", name, numbers(name, bytes / 4));
      }
      program.zeroGradients();

      const expected = await whole.lossAndGradients();
      const inputs = await inputsOf(whole.program), ids = new Uint32Array(inputs.get("ids")!.slice().buffer);
      const hand = async (from: SegmentName, to: SegmentName) => {
        const names = [...plan.segments[from].passed.keys()];
        const read = await settle(backend.read(names.map((name) => program.resultRange(from, name))));
        // Activations and gradients alike go in order; beside them a forward pass reads data.
        const wanted = [...plan.segments[to].inputs.keys()].filter((name) => name.startsWith("stage_"));
        assertEquals(wanted.length, read.length);
        wanted.forEach((name, index) => program.upload(to, name, read[index]!));
      };
      for (const chunk of chunks.keys()) {
        for (const [name, data] of inputs) {
          if (plan.segments[`forward ${chunk}`].inputs.has(name)) program.upload(`forward ${chunk}`, name, data);
        }
        if (chunk > 0) await hand(`forward ${chunk - 1}`, `forward ${chunk}`);
        await drive(program.run(`forward ${chunk}`));
      }
      const [loss] = await settle(backend.read([program.resultRange("forward 2", "loss")]));
      assertEquals(new Float32Array(loss!.buffer).reduce((sum, value) => sum + value, 0), expected);

      const first = split ? "backward input" : "backward";
      for (const chunk of [...chunks.keys()].reverse()) {
        if (chunk < chunks.length - 1) await hand(`${first} ${chunk + 1}`, `${first} ${chunk}`);
        feedGroups(program, `${first} ${chunk}`, ids);
        await drive(program.run(`${first} ${chunk}`));
      }
      // Put off as far as can be: nothing that weights need may be gone.
      if (split) { for (const chunk of chunks.keys()) await drive(program.run(`backward weight ${chunk}`)); }
      const gradients = await gradientsOf(whole);
      for (const { name } of plan.parameters) {
        const own = await program.readParameter("gradient", name);
        gradients.get(name)!.forEach((value, i) => assertAlmostEquals(own[i]!, value, 1e-6, `${name} ${i}`));
      }
    });
  }
}

Deno.test("cut() gives each piece its own layers, and says who reads a tied parameter", () => {
  const { pieces, readers } = chunksOf({ head: "tied", layers: 4 });
  assertEquals([...readers.get("table")!], [0, 2]);
  assertEquals([...readers.get("1.q")!], [1]);
  assertEquals(pieces.map(({ graph }) => [...graph.inputs.keys()].filter((name) => name.startsWith("stage_input"))), [
    [],
    ["stage_input 0"],
    ["stage_input 0"],
  ]);
  const has = (name: string) => pieces.map(({ graph }) => graph.inputs.has(name));
  assertEquals([has("ids"), has("labels"), has("start")], [
    [true, false, false],
    [false, false, true],
    [true, true, true],
  ]);
});

Deno.test("a backward pass in halves keeps what weights need with its micro-batch", async () => {
  using backend = await openBackend("null");
  const { limits } = backend.traits;
  const bytes = (split: boolean) =>
    planProgram({ chunks: chunksOf({ layers: 4, tokens: 64 }, { split }).chunks, limits })
      .frames.map((sizes) => sizes.reduce((sum, size) => sum + size, 0));
  const [whole, halves] = [bytes(false), bytes(true)];
  // The first piece hands nothing back: all of its backward pass can be put off.
  whole.forEach((size, chunk) => assert(halves[chunk]! > size || chunk === 0, `${halves[chunk]} and ${size}`));
});

Deno.test("cut() refuses layers that no piece holds", () => {
  const graph = new Graph();
  network(graph, { layers: 5 });
  assertThrows(() => cut(graph, spans, [0]), RangeError, "no piece holds layer 4");
});

/** What the whole program was fed. */
async function inputsOf(program: Program): Promise<Map<string, Uint8Array>> {
  const { inputs } = program.plan.segments["forward 0"], names = [...inputs.keys()];
  const read = await settle(program.backend.read(names.map((name) => program.inputRange("forward 0", name))));
  return new Map(names.map((name, index) => [name, read[index]!]));
}
