import { assert, assertEquals, assertThrows } from "@std/assert";
import { f32, Graph, type Node, type Tensor } from "../graph/graph.ts";
import { add, crossEntropy, embedding, linear, rmsNorm, rowNormalize } from "../graph/operators.ts";
import { replicated, type ShardingPlan, split } from "./layout.ts";
import { createMesh, singleRank } from "./mesh.ts";
import type { TensorModeName } from "./modes.ts";
import { shard } from "./shard.ts";

const [T, H, F, V] = [8, 6, 4, 10];
const sharding: ShardingPlan = {
  table: split(1, "tensor"),
  norm: replicated(),
  "*.up": split(0, "tensor"),
  "*.up.bias": split(0, "tensor"),
  "*.down": split(1, "tensor"),
  "*.down.bias": replicated(),
  head: split(0, "tensor"),
};

/** A layer of two products between a table and a head. */
function trace({ normHead = false } = {}) {
  const graph = new Graph(),
    p = (name: string, ...shape: number[]) => graph.parameter(name, shape, { kind: "constant", value: 1 });
  const ids = graph.input("ids", { shape: [T], type: "u32" });
  const x = embedding(ids, p("table", V, H), { gradientScale: 1 });
  const out = graph.inLayer(0, () => {
    const h = rmsNorm(x, p("norm", H), { epsilon: 1e-5 });
    const inner = linear(h, p("0.up", F, H), { bias: p("0.up.bias", F) });
    return linear(inner, p("0.down", H, F), { bias: p("0.down.bias", H), residual: x });
  });
  const head = p("head", V, H), logits = linear(out, normHead ? rowNormalize(head) : head);
  const labels = graph.input("labels", { shape: [T], type: "i32" }), weight = graph.input("weight", f32(1));
  return { graph, logits, loss: crossEntropy({ logits, labels, weight }, { labelSmoothing: 0 }) };
}

const mesh = (tp: number, wp: number, rank = 1) => {
  const world = Math.max(tp, wp);
  const sizes = { world, tp, pp: 1, dp: world / tp, wp, wdp: world / wp, zero1: 1, ep: 1, edp: world, etp: 1, ewp: 1 };
  return createMesh({ sizes, rank, tensorMode: wp > 1 ? "isp" : "mtp" });
};
const names = (nodes: readonly Node[]) => nodes.map(({ operator }) => operator.name);
const divide = (mode: TensorModeName, tp: number, wp = 1, options = {}) => {
  const traced = trace(options);
  return { ...traced, sharded: shard(traced.graph, { sharding, mesh: mesh(tp, wp), mode }) };
};

Deno.test("shard() leaves a graph as it is where every axis has size one", () => {
  const { graph, logits } = trace();
  const sharded = shard(graph, { sharding, mesh: singleRank });
  assert(sharded.graph === graph && sharded.part(logits).tensor === logits);
  assertEquals([sharded.inputs.size, sharded.summed.size], [0, 0]);
});

Deno.test("shard() puts the collectives of each mode where a tensor is not as its reader needs it", () => {
  const layer = (enter: string[], leave: string[]) => [...enter, "linear", "scale", "linear", ...leave, "add"];
  const loss = ["linear", "crossEntropyStatistics", "allGather", "vocabularyCrossEntropy"];
  assertEquals(names(divide("mtp", 2).sharded.graph.nodes), [
    ...["embedding", "allGather", "rmsNorm"],
    ...layer(["replicate"], ["allReduce"]),
    ...["replicate", ...loss],
  ]);
  for (const mode of ["msp", "fsp"] as const) {
    const { graph } = divide(mode, 2).sharded;
    assertEquals(names(graph.nodes), [
      ...["embedding", "allToAll", "rmsNorm"],
      ...layer(["allGather"], ["reduceScatter"]),
      ...["allGather", ...loss],
    ]);
    const gathers = graph.nodes.filter(({ operator, layer }) => operator.name === "allGather" && layer === 0);
    assertEquals(gathers.map(({ transient = false }) => transient), [mode === "fsp"]);
  }
  assertEquals(names(divide("isp", 1, 2).sharded.graph.nodes), [
    ...["allGather", "embedding", "rmsNorm", "allGather", "allGather", "linear", "allGather", "linear"],
    ...["allGather", "linear", "crossEntropy"],
  ]);
});

Deno.test("shard() gives a rank its parts, of parameters, inputs and what is made", () => {
  const shapes = (tensors: Iterable<Tensor>) =>
    Object.fromEntries([...tensors].map(({ name, shape }) => [name, shape]));
  const parameters = ({ graph }: { graph: Graph }) =>
    shapes([...graph.parameters.values()].map(({ tensor }) => tensor));
  const msp = divide("msp", 2), whole = { "0.up.bias": [F / 2], "0.down.bias": [H], norm: [H] };
  assertEquals(parameters(msp.sharded), {
    ...whole,
    table: [V, H / 2],
    "0.up": [F / 2, H],
    "0.down": [H, F / 2],
    head: [V / 2, H],
  });
  assertEquals(msp.sharded.part(msp.logits), {
    tensor: msp.sharded.part(msp.logits).tensor,
    held: split(1, "tensor"),
  });
  // Each rank has a term of the gradients of what sees its tokens only, and of a bias that enters a sum.
  assertEquals([...msp.sharded.summed].sort(), ["0.down.bias", "norm"]);
  assertEquals([...divide("mtp", 2).sharded.summed], ["0.down.bias"]);

  const isp = divide("isp", 2, 2);
  assertEquals(parameters(isp.sharded), {
    table: [V / 2, H],
    "0.up": [F / 2, H],
    "0.up.bias": [F / 2],
    "0.down": [H / 2, F],
    "0.down.bias": [H],
    head: [V / 2, H],
    norm: [H],
  });
  assertEquals(isp.sharded.inputs, new Map(["ids", "labels"].map((of) => [`${of} part`, { of, first: 4, count: 4 }])));
  assertEquals([...isp.sharded.summed].sort(), ["0.down.bias", "norm"]);
  assertEquals(isp.sharded.part(isp.loss.nll).held, split(0, "tensor"));
});

Deno.test("shard() normalises rows where they are, and gathers what came of them", () => {
  const nodes = names(divide("isp", 1, 2, { normHead: true }).sharded.graph.nodes);
  assertEquals(nodes.slice(nodes.indexOf("rowNormalize")), ["rowNormalize", "allGather", "linear", "crossEntropy"]);
});

Deno.test("shard() sums the gradient of a parameter once a step, however often it is used", () => {
  const graph = new Graph(), p = graph.parameter("p", [H, H], { kind: "constant", value: 1 });
  const ids = graph.input("ids", { shape: [T], type: "u32" });
  const labels = graph.input("labels", { shape: [T], type: "i32" }), weight = graph.input("weight", f32(1));
  const x = embedding(ids, p, { gradientScale: 1 }); // by tokens
  const y = linear(x, rowNormalize(p)); // by tokens
  crossEntropy({ logits: add(y, linear(x, p)), labels, weight }, { labelSmoothing: 0 });
  const plan: ShardingPlan = { p: replicated() };
  const { summed, graph: own } = shard(graph, { sharding: plan, mesh: mesh(2, 1), mode: "msp" });
  assertEquals([...summed], ["p"]);
  assert(!names(own.nodes).includes("allReduce"), "its gradient is summed once, at the step's end");
});

Deno.test("shard() names the parameter that an axis does not divide", () => {
  const { graph } = trace();
  assertThrows(
    () => shard(graph, { sharding: { ...sharding, norm: split(0, "tensor") }, mesh: mesh(4, 1), mode: "mtp" }),
    RangeError,
    "Parameter table: Cannot split dimension 1 of [10,6] over tensor: 6 is no multiple of 4",
  );
});
