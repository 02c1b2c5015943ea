/** What the tests of this folder share: a small network that uses every operator, and programs of traced graphs. */
import { groupTokens } from "../../kernels/embedding/mod.ts";
import type { Backend } from "../backend/backend.ts";
import { differentiate } from "./differentiate.ts";
import { f32, Graph, type Initialization, type Tensor } from "./graph.ts";
import {
  add,
  attention,
  crossEntropy,
  dropout,
  embedding,
  gate,
  groupedInput,
  layerNorm,
  linear,
  type LossOutputs,
  rmsNorm,
  rotate,
  rowNormalize,
  scale,
} from "./operators.ts";
import { type Plan, plan, type SegmentName } from "./plan.ts";
import { drive, Program, settle } from "./program.ts";

const init: Initialization = { kind: "normal", std: 0.5 };
export const sizes = { tokens: 7, hidden: 6, heads: 3, kvHeads: 1, inner: 5, vocab: 11 };

export interface NetworkOptions {
  /** The head: the embedding's table, a parameter of its own, or that with its rows normalised. */
  readonly head?: "tied" | "own" | "normalized";
  readonly layers?: number;
  readonly tokens?: number;
}

export function network(
  graph: Graph,
  { head = "normalized", layers = 2, tokens = sizes.tokens }: NetworkOptions = {},
): LossOutputs {
  const { hidden, heads, kvHeads, inner, vocab } = sizes, headDim = hidden / heads;
  const perToken = (name: string, type: "u32" | "i32") => graph.input(name, { shape: [tokens], type });
  const ids = perToken("ids", "u32"), positions = perToken("positions", "u32");
  const segments = { start: perToken("start", "u32"), end: perToken("end", "u32") };
  const counter = graph.input("counter", { shape: [2], type: "u32" });
  const labels = perToken("labels", "i32"), weight = graph.input("weight", f32(1));
  const angles = Float32Array.from({ length: tokens * headDim / 2 }, (_, i) => 0.3 * i);
  const tables = {
    positions,
    cosine: graph.constant("cosine", [tokens, headDim / 2], angles.map(Math.cos)),
    sine: graph.constant("sine", [tokens, headDim / 2], angles.map(Math.sin)),
  };
  const p = (name: string, ...shape: number[]) => graph.parameter(name, shape, init);

  const table = p("table", vocab, hidden);
  let x: Tensor = embedding(ids, table, { gradientScale: 1 });
  for (let layer = 0; layer < layers; layer++) {
    const n = (name: string) => `${layer}.${name}`;
    x = graph.inLayer(layer, () => {
      const h = rmsNorm(x, p(n("norm1"), hidden), { epsilon: 1e-5, unitOffset: layer % 2 === 1 });
      const project = (name: string, count: number) =>
        linear(h, p(n(name), count * headDim, hidden), { bias: p(n(`${name}.bias`), count * headDim) });
      const interleaved = layer % 2 === 1;
      const mixed = attention(
        {
          q: rotate(project("q", heads), tables, { heads, interleaved }),
          k: rotate(project("k", kvHeads), tables, { heads: kvHeads, interleaved }),
          v: project("v", kvHeads),
        },
        segments,
        { heads, kvHeads },
      );
      const dropped = dropout(mixed, counter, { rate: 0.25, layer });
      const attended = add(scale(linear(dropped, p(n("o"), hidden, hidden)), 0.7), x);
      const f = layerNorm(attended, p(n("norm2"), hidden), p(n("norm2.bias"), hidden), { epsilon: 1e-5 });
      const gated = gate(linear(f, p(n("gate"), inner, hidden)), linear(f, p(n("up"), inner, hidden)), "silu");
      return linear(gated, p(n("down"), hidden, inner), { residual: attended });
    });
  }
  const own = () => p("head", vocab, hidden);
  const logits = linear(x, head === "tied" ? table : head === "own" ? own() : rowNormalize(own()));
  return crossEntropy({ logits, labels, weight }, { labelSmoothing: 0.1 });
}

/** Repeats the same numbers: parameters by name, and the inputs of one micro-batch. */
export function numbers(key: string, length: number, range = 1): Float32Array<ArrayBuffer> {
  let state = [...key].reduce((hash, letter) => Math.imul(hash ^ letter.charCodeAt(0), 16777619), 2166136261);
  return Float32Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return range * ((state >>> 8) / 2 ** 23 - 1);
  });
}

export interface Made extends Disposable {
  readonly program: Program;
  readonly plan: Plan;
  /** Forward and backward over one micro-batch; the sum of the rows' losses, summed in double. */
  lossAndGradients(): Promise<number>;
  loss(): Promise<number>;
}

export type Trace = (graph: Graph) => LossOutputs;

export function planOf(trace: Trace, backend: Backend, { recompute = false, binding = Infinity } = {}): Plan {
  const graph = new Graph(), outputs = trace(graph);
  const evaluation = new Graph(), evaluationOutputs = trace(evaluation);
  const { maxBufferSize, maxStorageBufferBindingSize } = backend.traits.limits;
  return plan({
    chunks: [{
      training: differentiate(graph, { recompute: () => recompute }),
      trainingOutputs: { ...outputs },
      evaluation: { graph: evaluation, outputs: { ...evaluationOutputs } },
    }],
    limits: { maxBufferSize, maxStorageBufferBindingSize: Math.min(maxStorageBufferBindingSize, binding) },
  });
}

/** Fills what a backward pass wants of the tokens by id. */
export function feedGroups(program: Program, segment: SegmentName, ids: Uint32Array): void {
  for (const name of program.plan.segments[segment].inputs.keys()) {
    if (groupedInput(name) === "ids") program.upload(segment, name, groupTokens(ids));
  }
}

/** A program on `backend` with parameters drawn and one micro-batch of two segments in place. */
export async function make(
  trace: Trace,
  backend: Backend,
  options: { recompute?: boolean; binding?: number } = {},
): Promise<Made> {
  const plan = planOf(trace, backend, options);
  const program = await Program.create(backend, plan, { microBatches: 1 });
  for (const { name, bytes } of plan.parameters) program.writeParameter("parameter", name, numbers(name, bytes / 4));
  const tokens = plan.segments["forward 0"].inputs.get("ids")!.bytes / 4, cut = Math.floor(tokens / 2) + 1;
  const of = (value: (token: number) => number) => Uint32Array.from({ length: tokens }, (_, token) => value(token));
  const inputs = {
    ids: of((token) => (5 * token) % sizes.vocab),
    positions: of((token) => token < cut ? token : token - cut),
    start: of((token) => token < cut ? 0 : cut),
    end: of((token) => token < cut ? cut : tokens),
    labels: Int32Array.from(of((token) => (3 * token + 1) % sizes.vocab)).fill(-100, cut - 1, cut),
    counter: new Uint32Array([7, 3]),
    weight: new Float32Array([1]),
  };
  const run = async (backward: boolean) => {
    for (const [name, data] of Object.entries(inputs)) program.upload("forward 0", name, data);
    program.zeroGradients();
    await drive(program.run("forward 0"));
    program.keepOutputs(0);
    if (backward) {
      feedGroups(program, "backward 0", inputs.ids);
      await drive(program.run("backward 0"));
    }
    const [bytes] = await settle(backend.read([program.outputRange("loss", 0)]));
    return new Float32Array(bytes.buffer).reduce((sum, loss) => sum + loss, 0);
  };
  return {
    program,
    plan,
    lossAndGradients: () => run(true),
    loss: () => run(false),
    [Symbol.dispose]: () => program[Symbol.dispose](),
  };
}

/** All gradients, by name. */
export async function gradientsOf({ program, plan }: Made): Promise<Map<string, Float32Array>> {
  const gradients = new Map<string, Float32Array>();
  for (const { name } of plan.parameters) gradients.set(name, await program.readParameter("gradient", name));
  return gradients;
}
