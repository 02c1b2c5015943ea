/** Collectives inside programs, each rank a program of its own in one thread; the oracle is the same tensor, whole. */
import { assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import { onAllRanks, simulatedWorld } from "../comm/_testing.ts";
import { backendNames, openBackend } from "../backend/open.ts";
import { numbers } from "./_testing.ts";
import { allGather, allReduce, allToAll, type Along, gather, reduceScatter, replicate, split } from "./collectives.ts";
import { differentiate } from "./differentiate.ts";
import { f32, Graph, type Tensor } from "./graph.ts";
import { plan } from "./plan.ts";
import { drive, Program, settle } from "./program.ts";

type Matrix = { readonly shape: readonly [number, number]; readonly values: Float32Array };
const matrix = (key: string, ...shape: [number, number]): Matrix => ({
  shape,
  values: numbers(key, shape[0] * shape[1]),
});
const floats = (bytes: Uint8Array<ArrayBuffer>) =>
  new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);

/** Part `index` of `size` along a dimension. */
function part(
  { shape: [rows, columns], values }: Matrix,
  dimension: number,
  size: number,
  index: number,
): Float32Array {
  const [r, c] = dimension === 0 ? [rows / size, columns] : [rows, columns / size];
  const [row, column] = dimension === 0 ? [index * r, 0] : [0, index * c];
  return Float32Array.from({ length: r * c }, (_, i) => values[(row + Math.floor(i / c)) * columns + column + i % c]);
}
const sum = (terms: readonly Float32Array[]) => terms[0].map((_, i) => terms.reduce((all, term) => all + term[i], 0));

/**
 * Runs `y = body(x)` and its backward pass on every rank.
 *
 * @param given gradient of y
 */
async function runOnRanks(
  name: typeof backendNames[number],
  size: number,
  body: (x: Tensor, along: Along) => Tensor,
  { x, given }: { x: (rank: number) => Matrix; given: (rank: number) => Float32Array },
) {
  return await onAllRanks(simulatedWorld(size), async (communicator, rank) => {
    const group = communicator.group("tensor", Array.from({ length: size }, (_, i) => i));
    using backend = await openBackend(name);
    const trace = () => {
      const graph = new Graph(), input = graph.input("x", f32(...x(rank).shape));
      const y = body(input, { axis: "tensor", size, index: rank });
      return { graph, input, y };
    };
    const { graph, input, y } = trace(), evaluation = trace();
    const dY = graph.input("dY", y);
    const made = plan({
      chunks: [{
        training: differentiate(graph, { outputGradients: new Map([[y, dY]]), wanted: [input] }),
        trainingOutputs: {},
        passed: { y },
        evaluation: { graph: evaluation.graph, outputs: {}, passed: { y: evaluation.y } },
      }],
      limits: backend.traits.limits,
    });
    using program = await Program.create(backend, made, { microBatches: 1, groups: () => group });
    program.upload("forward 0", "x", x(rank).values);
    await drive(program.run("forward 0"));
    const [forward] = await settle(backend.read([program.resultRange("forward 0", "y")]));
    program.upload("backward 0", "dY", given(rank));
    await drive(program.run("backward 0"));
    const [backward] = await settle(backend.read([program.resultRange("backward 0", "x")]));
    await backend.finish();
    return { y: floats(forward), dX: floats(backward), traffic: program.traffic };
  });
}

const close = (actual: Float32Array, expected: Float32Array, message: string) => {
  assertEquals(actual.length, expected.length, message);
  actual.forEach((value, i) => assertAlmostEquals(value, expected[i], 1e-6, `${message} [${i}]`));
};

for (const name of backendNames.filter((name) => name !== "null")) {
  const sizes = name === "cpu" ? [2, 3, 4] : [2];
  Deno.test(`${name}: collectives of sums are each other's gradients`, async () => {
    for (const size of sizes) {
      const ranks = Array.from({ length: size }, (_, rank) => rank);
      const terms = ranks.map((rank) => matrix(`term ${rank}`, 2 * size, 3 * size));
      const total: Matrix = { shape: terms[0].shape, values: sum(terms.map(({ values }) => values)) };
      const x = (rank: number) => terms[rank], same = numbers("same", total.values.length);

      const reduced = await runOnRanks(name, size, allReduce, { x, given: () => same });
      reduced.forEach(({ y, dX }, rank) => {
        close(y, total.values, `all-reduce on ${rank}`);
        close(dX, same, `gradient of all-reduce on ${rank}`);
      });
      const copies = await runOnRanks(name, size, replicate, { x: () => total, given: (rank) => terms[rank].values });
      copies.forEach(({ y, dX }, rank) => {
        close(y, total.values, `replicate on ${rank}`);
        close(dX, total.values, `gradient of replicate on ${rank}`);
      });
      for (const dimension of [0, 1]) {
        const parts = (of: Matrix) => (rank: number) => part(of, dimension, size, rank);
        const whole = { shape: total.shape, values: same };
        const scattered = await runOnRanks(name, size, (t, along) => reduceScatter(t, { ...along, dimension }), {
          x,
          given: parts(whole),
        });
        scattered.forEach(({ y, dX }, rank) => {
          close(y, parts(total)(rank), `reduce-scatter of ${dimension} on ${rank}`);
          close(dX, same, `gradient of reduce-scatter of ${dimension} on ${rank}`);
        });
      }
    }
  });

  Deno.test(`${name}: collectives that move parts are each other's gradients`, async () => {
    for (const size of sizes) {
      const ranks = Array.from({ length: size }, (_, rank) => rank);
      const whole = matrix("whole", 2 * size, 3 * size), gradient = matrix("gradient", 2 * size, 3 * size);
      const [rows, columns] = whole.shape;
      const held = (of: Matrix, dimension: number, rank: number): Matrix => ({
        shape: dimension === 0 ? [rows / size, columns] : [rows, columns / size],
        values: part(of, dimension, size, rank),
      });
      for (const dimension of [0, 1]) {
        const x = (rank: number) => held(whole, dimension, rank);
        const terms = ranks.map((rank) => matrix(`use ${rank}`, rows, columns));
        const total: Matrix = { shape: whole.shape, values: sum(terms.map(({ values }) => values)) };
        for (const [what, operator] of Object.entries({ allGather, gather })) {
          const alike = what === "gather";
          const given = (rank: number) => alike ? gradient.values : terms[rank].values;
          const results = await runOnRanks(name, size, (t, along) => operator(t, { ...along, dimension }), {
            x,
            given,
          });
          results.forEach(({ y, dX }, rank) => {
            close(y, whole.values, `${what} of ${dimension} on ${rank}`);
            close(dX, part(alike ? gradient : total, dimension, size, rank), `gradient of ${what} of ${dimension}`);
          });
        }
        const results = await runOnRanks(name, size, (t, along) => split(t, { ...along, dimension }), {
          x: () => whole,
          given: (rank) => part(gradient, dimension, size, rank),
        });
        results.forEach(({ y, dX }, rank) => {
          close(y, part(whole, dimension, size, rank), `split of ${dimension} on ${rank}`);
          close(dX, gradient.values, `gradient of split of ${dimension} on ${rank}`);
        });
        const [from, to] = [dimension, 1 - dimension];
        const exchanged = await runOnRanks(name, size, (t, along) => allToAll(t, { ...along, from, to }), {
          x,
          given: (rank) => part(gradient, to, size, rank),
        });
        exchanged.forEach(({ y, dX, traffic }, rank) => {
          close(y, part(whole, to, size, rank), `all-to-all from ${from} to ${to} on ${rank}`);
          close(dX, part(gradient, from, size, rank), `gradient of all-to-all from ${from} to ${to} on ${rank}`);
          const bytes = 2 * 4 * whole.values.length / size;
          assertEquals(traffic, [{ axis: "tensor", operator: "all-to-all", count: 2, bytes }]);
        });
      }
    }
  });
}

Deno.test("collectives refuse what they cannot divide, and a program refuses to be without ranks", async () => {
  const graph = new Graph(), x = graph.input("x", f32(4, 6)), along = { axis: "tensor", size: 3, index: 0 };
  const message = "dimension 0 of [4,6] over tensor: 4 is no multiple of 3";
  for (const operator of [split, reduceScatter]) {
    assertThrows(() => operator(x, { ...along, dimension: 0 }), RangeError, message);
  }
  assertThrows(() => allToAll(x, { ...along, from: 1, to: 0 }), RangeError, message);
  using backend = await openBackend("cpu");
  const y = allReduce(x, along);
  const training = differentiate(graph, { outputGradients: new Map([[y, graph.input("dY", y)]]), wanted: [x] });
  const made = plan({
    chunks: [{ training, trainingOutputs: {}, passed: { y }, evaluation: { graph: new Graph(), outputs: {} } }],
    limits: backend.traits.limits,
  });
  let refused: unknown;
  await Program.create(backend, made, { microBatches: 1 }).catch((error) => refused = error);
  assertEquals((refused as Error).message, "Cannot make a program with collectives without groups");
  assertEquals(backend.allocatedBytes, 0);
});
