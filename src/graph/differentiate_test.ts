import { assert, assertAlmostEquals, assertEquals, assertLess, assertThrows } from "@std/assert";
import { backendNames, openBackend } from "../backend/open.ts";
import { feedGroups, gradientsOf, make, network, numbers } from "./_testing.ts";
import { differentiate } from "./differentiate.ts";
import { f32, Graph } from "./graph.ts";
import { drive, settle } from "./program.ts";
import { add, crossEntropy, embedding, linear } from "./operators.ts";

const dot = (a: Float32Array, b: Float32Array) => a.reduce((sum, value, i) => sum + value * b[i], 0);

Deno.test("differentiate() gives every parameter the slope that finite differences find", async () => {
  using backend = await openBackend("cpu");
  for (const head of ["tied", "own", "normalized"] as const) {
    using made = await make((graph) => network(graph, { head }), backend);
    await made.lossAndGradients();
    const gradients = await gradientsOf(made);
    for (const { name } of made.plan.parameters) {
      const values = await made.program.readParameter("parameter", name);
      const direction = numbers(`direction of ${name}`, values.length), step = 1 / 256;
      const lossAt = (distance: number) => {
        made.program.writeParameter("parameter", name, values.map((value, i) => value + distance * direction[i]));
        return made.loss();
      };
      // Four points: the error of the difference is of the fourth order, and below that of float32.
      const near = await lossAt(step) - await lossAt(-step), far = await lossAt(2 * step) - await lossAt(-2 * step);
      const slope = (8 * near - far) / (12 * step);
      made.program.writeParameter("parameter", name, values);
      const expected = dot(gradients.get(name)!, direction);
      assertAlmostEquals(expected, slope, 1e-3 * Math.max(1, Math.abs(slope)), `${name}, head ${head}`);
      assert(gradients.get(name)!.some((value) => value !== 0), `${name} has no gradient`);
    }
  }
});

Deno.test("differentiate() adds up the gradients of a tied parameter, which exists once", async () => {
  using backend = await openBackend("cpu");
  using tied = await make((graph) => network(graph, { head: "tied" }), backend);
  using own = await make((graph) => network(graph, { head: "own" }), backend);
  own.program.writeParameter("parameter", "head", await own.program.readParameter("parameter", "table"));
  assertEquals(await tied.lossAndGradients(), await own.lossAndGradients());
  const { head, table, ...rest } = Object.fromEntries(await gradientsOf(own));
  const { table: sum, ...tiedRest } = Object.fromEntries(await gradientsOf(tied));
  assertEquals(Object.keys(tiedRest), Object.keys(rest));
  sum.forEach((value, i) => assertAlmostEquals(value, head[i] + table[i], 1e-6));
});

for (const name of backendNames.filter((name) => name !== "null")) {
  Deno.test(`${name}: recomputation changes no bit of loss and gradients, and shrinks the frame`, async () => {
    using backend = await openBackend(name);
    using saved = await make((graph) => network(graph), backend);
    using recomputed = await make((graph) => network(graph), backend, { recompute: true });
    assertEquals(await recomputed.lossAndGradients(), await saved.lossAndGradients());
    assertEquals(await gradientsOf(recomputed), await gradientsOf(saved));
    const bytes = ({ plan }: typeof saved) => plan.frames[0].reduce((sum, size) => sum + size, 0);
    assertLess(bytes(recomputed), bytes(saved));
    await backend.finish();
  });
}

Deno.test("differentiate() lets gradients of a micro-batch add to those of the one before", async () => {
  using backend = await openBackend("cpu");
  using made = await make((graph) => network(graph), backend);
  await made.lossAndGradients();
  const once = await gradientsOf(made);
  await drive(made.program.run("forward 0"));
  const [ids] = await settle(backend.read([made.program.inputRange("forward 0", "ids")]));
  feedGroups(made.program, "backward 0", new Uint32Array(ids!.buffer));
  await drive(made.program.run("backward 0"));
  for (const [name, gradient] of await gradientsOf(made)) {
    gradient.forEach((value, i) => assertAlmostEquals(value, 2 * once.get(name)![i], 1e-5, name));
  }
});

Deno.test("differentiate() refuses a graph without a loss, and a parameter that no gradient reaches", () => {
  const make = () => {
    const graph = new Graph(), x = graph.input("x", f32(2, 3));
    return { graph, x, w: graph.parameter("w", [4, 3], { kind: "constant", value: 1 }) };
  };
  {
    const { graph, x, w } = make();
    linear(x, w);
    assertThrows(() => differentiate(graph), TypeError, "the graph has no loss");
  }
  const { graph, x, w } = make();
  graph.parameter("unused", [4, 3], { kind: "constant", value: 1 });
  const labels = graph.input("labels", { shape: [2], type: "i32" });
  crossEntropy({ logits: linear(x, w), labels, weight: graph.input("weight", f32(1)) }, { labelSmoothing: 0 });
  assertThrows(() => differentiate(graph), TypeError, "no gradient reaches parameter unused");
});

Deno.test("differentiate() refuses an embedding whose ids the host does not have", () => {
  const graph = new Graph(), table = graph.parameter("table", [4, 3], { kind: "constant", value: 1 });
  const labels = graph.input("labels", { shape: [2], type: "i32" }), weight = graph.input("weight", f32(1));
  const { correct } = crossEntropy({ logits: linear(graph.input("x", f32(2, 3)), table), labels, weight }, {
    labelSmoothing: 0,
  });
  const again = linear(embedding(correct, table, { gradientScale: 1 }), table);
  crossEntropy({ logits: again, labels, weight }, { labelSmoothing: 0 });
  assertThrows(() => differentiate(graph), TypeError, "by ids that the model makes itself");
});

Deno.test("Graph refuses shapes that do not fit, when traced", () => {
  const graph = new Graph(), x = graph.input("x", f32(2, 3));
  const w = graph.parameter("w", [4, 5], { kind: "constant", value: 1 });
  assertThrows(() => linear(x, w), TypeError, "x has 3 features, the weight takes 5");
  assertThrows(() => add(x, w), TypeError, "shape [4,5] where [2,3] is needed");
  assertThrows(() => graph.parameter("w", [5, 4], { kind: "constant", value: 1 }), TypeError, "[4,5], asked for [5,4]");
  assertThrows(() => graph.input("x", f32(1)), TypeError, "input x twice");
  assertThrows(() => graph.constant("c", [2], new Float32Array(3)), RangeError, "shape [2] from 3 numbers");
});
