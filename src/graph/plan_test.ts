import { assert, assertEquals, assertGreater, assertLess, assertRejects, assertThrows } from "@std/assert";
import { groupsLength } from "../../kernels/embedding/mod.ts";
import { openNullBackend } from "../backend/null/backend.ts";
import { openBackend } from "../backend/open.ts";
import { gradientsOf, make, network, planOf, sizes } from "./_testing.ts";
import type { Graph } from "./graph.ts";
import { tensorBytes } from "./graph.ts";
import { estimateMemory, type Place, type Plan } from "./plan.ts";
import { drive, Program } from "./program.ts";

const sum = (sizes: readonly number[]) => sizes.reduce((total, size) => total + size, 0);
const traces = {
  "one layer": (graph: Graph) => network(graph, { layers: 1 }),
  "five layers": (graph: Graph) => network(graph, { layers: 5, tokens: 130 }),
  "a tied head": (graph: Graph) => network(graph, { head: "tied" }),
};

/** Every write of every dispatch, with what else the dispatch binds. */
function assertNoBufferReadAndWritten({ segments }: Plan): void {
  const buffer = ({ space, slot }: Place) => `${space} ${slot}`;
  for (const { instructions } of Object.values(segments)) {
    for (const instruction of instructions) {
      if (instruction.kind !== "dispatch") {
        assert(instruction.kind === "copy");
        assert(buffer(instruction.source) !== buffer(instruction.target));
        continue;
      }
      const { kernel, places } = instruction;
      assertEquals(places.length, kernel.operands.length);
      kernel.operands.forEach(({ access, name }, i) => {
        if (access === "read") return;
        const others = places.filter((_, other) => other !== i).map(buffer);
        assert(!others.includes(buffer(places[i])), `${kernel.name} binds the buffer of ${name} twice`);
      });
    }
  }
}

for (const [what, trace] of Object.entries(traces)) {
  for (const recompute of [false, true]) {
    Deno.test(`plan() binds no buffer for reading and writing, ${what}, recompute ${recompute}`, async () => {
      using backend = openNullBackend();
      const plan = planOf(trace, backend, { recompute });
      assertNoBufferReadAndWritten(plan);
      // The ledger of the null backend checks the same, and sizes, bounds and alignment, on all commands.
      using program = await Program.create(backend, plan, { frames: 2, microBatches: 3 });
      for (const segment of ["forward 0", "backward 0"] as const) await drive(program.run(segment, 1));
      program.keepOutputs(2, 1);
      await drive(program.run("evaluate 0"));
      const dispatches = Object.values(plan.segments).flatMap(({ instructions }) => instructions)
        .filter(({ kind }) => kind === "dispatch");
      assertEquals(backend.counts.dispatches, dispatches.length);
    });

    Deno.test(`estimateMemory() is what a program takes, ${what}, recompute ${recompute}`, async () => {
      using backend = openNullBackend();
      const plan = planOf(trace, backend, { recompute });
      for (const [frames, microBatches] of [[1, 1], [3, 5]]) {
        const { total, ...parts } = estimateMemory(plan, { frames, microBatches });
        using _ = await Program.create(backend, plan, { frames, microBatches });
        assertEquals(backend.allocatedBytes, total);
        assertEquals(sum(Object.values(parts)), total);
      }
      assertEquals(backend.allocatedBytes, 0);
    });
  }
}

Deno.test("plan() lets tensors whose lives do not overlap share slots", () => {
  using backend = openNullBackend();
  const depth = (layers: number, recompute = false) =>
    planOf((graph) => network(graph, { layers, tokens: 64 }), backend, { recompute });
  // Without sharing the workspace would grow with every layer; the frame keeps what the backward pass reads.
  assertEquals(sum(depth(6).workspace), sum(depth(3).workspace));
  assertGreater(sum(depth(6).frames[0]), sum(depth(3).frames[0]));
  // With recomputation a further layer costs its input, rounded up to where a buffer may start.
  const perLayer = (sum(depth(6, true).frames[0]) - sum(depth(3, true).frames[0])) / 3;
  assertEquals(perLayer, 256 * Math.ceil(tensorBytes({ shape: [64, sizes.hidden], type: "f32" }) / 256));
});

Deno.test("plan() lets evaluation use the frames, which are empty then", () => {
  using backend = openNullBackend();
  const { segments, frames, workspace } = planOf((graph) => network(graph, { tokens: 512 }), backend);
  const [logits] = segments["evaluate 0"].instructions.filter((each) =>
    each.kind === "dispatch" && each.label === "crossEntropy.forward"
  );
  assert(logits?.kind === "dispatch" && logits.places[0]!.space === "frame");
  // Of what the forward pass keeps, nothing has a second place; inputs alone are as many again.
  assertLess(sum(workspace), sum(frames[0]) / 3);
});

Deno.test("plan() gives parameters arenas no larger than a binding, none across two, and computes the same", async () => {
  using backend = await openBackend("cpu");
  const trace = (graph: Graph) => network(graph, { tokens: 20 });
  using one = await make(trace, backend);
  using many = await make(trace, backend, { binding: 1024 });
  assertEquals(one.plan.arenas.length, 1);
  assertGreater(many.plan.arenas.length, 2);
  for (const bytes of many.plan.arenas) assertLess(bytes, 1025);
  for (const { arena, offset, bytes } of many.plan.parameters) {
    assertEquals(offset % 256, 0);
    assert(offset + bytes <= many.plan.arenas[arena]);
  }
  assertEquals(await many.lossAndGradients(), await one.lossAndGradients());
  assertEquals(await gradientsOf(many), await gradientsOf(one));
});

Deno.test("plan() refuses a tensor that no binding holds, with both sizes and what would fit", () => {
  using backend = openNullBackend({ maxStorageBufferBindingSize: 1024 });
  const { vocab, hidden } = sizes;
  assertThrows(
    () => planOf((graph) => network(graph, { tokens: 40 }), backend),
    RangeError,
    `it takes ${4 * 40 * vocab} bytes, one binding of this device holds at most 1024; a smaller data.micro_bsz`,
  );
  using tiny = openNullBackend({ maxStorageBufferBindingSize: 256 });
  assertThrows(
    () => planOf((graph) => network(graph), tiny),
    RangeError,
    `Cannot place parameter table [${vocab},${hidden}]: it takes ${
      4 * vocab * hidden
    } bytes, one binding of this device`,
  );
});

Deno.test("Program frees everything when it cannot be made whole", async () => {
  using backend = openNullBackend();
  const plan = planOf((graph) => network(graph, { tokens: 500 }), backend);
  assertGreater(Math.max(...plan.frames[0]), plan.arenas[0]);
  using small = openNullBackend({ maxBufferSize: plan.arenas[0] });
  await assertRejects(() => Program.create(small, plan, { microBatches: 1 }), RangeError, "frame 0 slot");
  assertGreater(small.peakBytes, 0);
  assertEquals(small.allocatedBytes, 0);
});

Deno.test("plan() has what the backward pass alone reads filled before that pass, outside of the frames", () => {
  using backend = openNullBackend();
  const { segments } = planOf((graph) => network(graph, { tokens: 500 }), backend);
  assertEquals(segments["forward 0"].inputs.has("ids groups"), false);
  assertEquals([...segments["backward 0"].inputs.keys()], ["ids groups"]);
  const { space, bytes } = segments["backward 0"].inputs.get("ids groups")!;
  assertEquals([space, bytes], ["workspace", 4 * groupsLength(500)]);
});

Deno.test("Program refuses data of another size and names it does not know", async () => {
  using backend = openNullBackend();
  using program = await Program.create(backend, planOf((graph) => network(graph), backend), { microBatches: 2 });
  assertThrows(() => program.upload("forward 0", "ids", new Uint32Array(3)), RangeError, "it takes 28 bytes, got 12");
  assertThrows(() => program.upload("forward 0", "nothing", new Uint32Array(3)), RangeError, "no such input");
  assertThrows(
    () => program.writeParameter("parameter", "table", new Float32Array(3)),
    RangeError,
    "66 numbers, got 3",
  );
  assertThrows(() => program.parameterRange("moment1", "nothing"), RangeError, "no such parameter");
  assertThrows(() => program.keepOutputs(2), RangeError, "more than were planned for");
  assertThrows(() => program.outputRange("nothing", 0), RangeError, "no such output");
});
