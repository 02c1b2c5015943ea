import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { openBackend } from "../backend/open.ts";
import { numbers } from "./_testing.ts";
import { chunkOf, cut } from "./cut.ts";
import { f32, Graph, type Initialization, type Tensor } from "./graph.ts";
import { add, attention, crossEntropy, gate, linear, rmsNorm, rotate } from "./operators.ts";
import { plan as planProgram } from "./plan.ts";
import { drive, Program, settle } from "./program.ts";

const init: Initialization = { kind: "normal", std: 0.5 }, tokens = 7, hidden = 32, heads = 2, kvHeads = 1, headDim = 4;

/** A block of a decoder, and what of it is not as usual. */
function block(graph: Graph, { inner = 8, bias = false, besides = false } = {}) {
  const perToken = (name: string, type: "u32" | "i32") => graph.input(name, { shape: [tokens], type });
  const segments = { start: perToken("start", "u32"), end: perToken("end", "u32") };
  const labels = perToken("labels", "i32"), weight = graph.input("weight", f32(1));
  const angles = Float32Array.from({ length: tokens * headDim / 2 }, (_, i) => 0.3 * i);
  const tables = {
    positions: perToken("positions", "u32"),
    cosine: graph.constant("cosine", [tokens, headDim / 2], angles.map(Math.cos)),
    sine: graph.constant("sine", [tokens, headDim / 2], angles.map(Math.sin)),
  };
  const p = (name: string, ...shape: number[]) => graph.parameter(name, shape, init);
  const given = p("given", tokens, hidden);
  const stream = graph.inLayer(0, () => {
    const h = rmsNorm(given, p("norm", hidden), { epsilon: 1e-5 });
    const project = (name: string, count: number): Tensor =>
      linear(h, p(name, count * headDim, hidden), bias ? { bias: p(`${name}.bias`, count * headDim) } : {});
    const q = project("q", heads), k = project("k", kvHeads), v = project("v", kvHeads);
    const mixed = attention(
      {
        q: rotate(q, tables, { heads, interleaved: false }),
        k: rotate(k, tables, { heads: kvHeads, interleaved: false }),
        v,
      },
      segments,
      { heads, kvHeads },
    );
    const attended = linear(mixed, p("o", hidden, heads * headDim), {
      residual: besides ? linear(q, p("besides", hidden, 8)) : given,
    });
    const a = linear(attended, p("gate", inner, hidden)), b = linear(attended, p("up", inner, hidden));
    const gated = gate(a, b, "silu");
    return linear(besides ? add(gated, a) : gated, p("down", hidden, inner), { residual: attended });
  });
  const logits = linear(stream, p("head", 11, hidden));
  return crossEntropy({ logits, labels, weight }, { labelSmoothing: 0 });
}

type Options = NonNullable<Parameters<typeof block>[1]>;

/** @param join bytes of a binding; none: products stay apart */
function chunk(options: Options, join?: number, { split = false, recompute = false } = {}) {
  const pass = () => {
    const graph = new Graph(), outputs = { ...block(graph, options) };
    return { piece: cut(graph, [{ first: 0, end: 1 }], [0]).pieces[0]!, outputs };
  };
  return chunkOf({
    training: pass(),
    evaluation: pass(),
    recompute: () => recompute,
    split,
    ...(join !== undefined && { join: { largest: join, alignment: 512 } }),
  });
}

const operators = (options: Options, join: number) =>
  new Set(chunk(options, join).training.forward.map(({ operator: { name } }) => name));

async function lossAndGradients(options: Options, join?: number, how: { split?: boolean; recompute?: boolean } = {}) {
  using backend = await openBackend("cpu");
  const plan = planProgram({ chunks: [chunk(options, join, how)], limits: backend.traits.limits });
  using program = await Program.create(backend, plan, { microBatches: 1 });
  for (const { name, bytes } of plan.parameters) program.writeParameter("parameter", name, numbers(name, bytes / 4));
  const of = (value: (token: number) => number) => Uint32Array.from({ length: tokens }, (_, token) => value(token));
  const inputs = { start: of(() => 0), end: of(() => tokens), positions: of((t) => t), labels: of((t) => t) };
  for (const [name, data] of Object.entries(inputs)) program.upload("forward 0", name, data);
  program.upload("forward 0", "weight", new Float32Array([1]));
  program.zeroGradients();
  await drive(program.run("forward 0"));
  program.keepOutputs(0);
  for (const half of how.split ? ["backward input 0", "backward weight 0"] as const : ["backward 0"] as const) {
    await drive(program.run(half));
  }
  const [bytes] = await settle(backend.read([program.outputRange("loss", 0)]));
  const gradients = new Map<string, Float32Array>();
  for (const { name } of plan.parameters) gradients.set(name, await program.readParameter("gradient", name));
  const shapes = plan.parameters.map(({ name, shape }) => `${name} ${shape}`);
  return { loss: new Float32Array(bytes!.buffer).reduce((sum, each) => sum + each, 0), gradients, shapes };
}

for (const how of [{}, { recompute: true }, { split: true }]) {
  Deno.test(`joinProducts() changes neither loss nor gradients nor parameters: ${JSON.stringify(how)}`, async () => {
    const apart = await lossAndGradients({}, undefined, how), joined = await lossAndGradients({}, 1 << 20, how);
    assertAlmostEquals(joined.loss, apart.loss, 1e-6);
    assertEquals(joined.shapes, apart.shapes);
    for (const [name, values] of apart.gradients) {
      const own = joined.gradients.get(name)!, largest = Math.max(...values.map(Math.abs));
      assert(largest > 0, name);
      values.forEach((value, i) => assertAlmostEquals(own[i]!, value, 2e-6 * largest, `${name}[${i}]`));
    }
  });
}

Deno.test("joinProducts() joins what is read alike, and nothing else", () => {
  const names = (options: Options, join = 1 << 20) => {
    const all = operators(options, join);
    return [all.has("splitHeads"), all.has("pairedGate")];
  };
  assertEquals(names({}), [true, true]);
  assertEquals(names({ bias: true }), [false, true]);
  assertEquals(names({ inner: 6 }), [true, false], "a weight of 768 bytes ends before the next begins");
  assertEquals(names({ besides: true }), [false, false], "a product has another reader");
  assertEquals(names({}, 2047), [false, false], "one binding holds less than the weights");
  assertEquals(names({}, 2048), [true, true]);
});

Deno.test("joinProducts(): parameters that are read as one share an arena", () => {
  const limits = { maxBufferSize: 1 << 20, maxStorageBufferBindingSize: 2048 };
  const { parameters } = planProgram({ chunks: [chunk({}, 2048)], limits });
  const arenas = (names: readonly string[]) =>
    new Set(parameters.filter(({ name }) => names.includes(name)).map(({ arena }) => arena)).size;
  assertEquals([arenas(["q", "k", "v"]), arenas(["gate", "up"])], [1, 1]);
});
