/**
 * What a step moves between ranks, against closed formulas of each mode: collectives as the program counts them, by axis,
 * and bytes that real sockets take, by axis too, headers apart.
 */
import { assertEquals } from "@std/assert";
import { laneId, pairName } from "../src/comm/collectives/communicator.ts";
import type { Mode } from "../src/parallel/mesh.ts";
import { type Division, onWorld, recordOf, type TinyRun, trainSteps } from "./layouts.ts";
import { countingSockets } from "./sockets.ts";

/** Sizes of the model: tokens, hidden, heads of keys together, feed-forward, vocabulary, layers; micro-batches of a step. */
const [T, H, K, F, V, L, M] = [16, 32, 16, 64, 64, 2, 2];
const run: TinyRun = {
  model_type: "INTERNLM2",
  model: { num_attention_heads: 8, no_bias: true },
  tokens: T,
  microBatches: M,
};
const word = 4;
const stream = word * T * H;
/** Weights of a layer, and of the whole model; norms. */
const layerWeights = 2 * H * H + 2 * K * H + 3 * F * H, weights = L * layerWeights + 2 * V * H, norms = (2 * L + 1) * H;

type Collectives = Record<string, { count: number; bytes: number }>;
const times = (count: number, bytes: number) => ({ count, bytes: count * bytes });
const together = (...parts: { count: number; bytes: number }[]) =>
  parts.reduce((sum, part) => ({ count: sum.count + part.count, bytes: sum.bytes + part.bytes }));

/** Five numbers a row from every rank, for the loss. */
const statistics = (p: number) => times(M, word * 5 * T * p);

/**
 * Of the tensor axis of p ranks, in a step. Forward a layer enters split work twice and leaves it twice, backward too;
 * the head is entered once.
 */
const modes: Record<string, (p: number) => Collectives> = {
  mtp: (p) => ({
    // Two sums forward, two backward, and one behind the head; the table's columns are gathered.
    "all-reduce": times(M * (4 * L + 1), stream),
    "all-gather": together(times(M, stream), statistics(p)),
  }),
  msp: (p) => ({
    // Where mtp sums, tokens are scattered on the way out and gathered on the way in.
    "reduce-scatter": times(M * (4 * L + 1), stream),
    "all-gather": together(times(M * (4 * L + 1), stream), statistics(p)),
    "all-to-all": times(2 * M, stream / p), // the table's columns for tokens, and back
  }),
  fsp: (p) => ({
    ...modes.msp(p),
    // What entered split work is gathered again for the backward pass.
    "all-gather": together(times(M * (6 * L + 2), stream), statistics(p)),
  }),
  // Query, key, value and output of attention, forward and backward; the loss stays where its tokens are.
  isp: (p) => ({ "all-to-all": times(M * 8 * L, word * T * (2 * H + 2 * K) / 4 / p) }),
};

/** Of the weight axis: each weight is gathered forward and, save the table, backward; its gradient is scattered. */
const weightAxis = (microBatches: number): Collectives => {
  const count = 7 * L + 1;
  return {
    "all-gather": together(
      times(2 * microBatches * count, word * (weights - V * H) / count),
      times(microBatches, word * V * H),
    ),
    "reduce-scatter": times(microBatches * (count + 1), word * weights / (count + 1)),
  };
};

/** What one rank sends in a collective on a tensor of so many bytes. */
function wire(operator: string, bytes: number, p: number): number {
  if (operator !== "all-reduce") return bytes * (p - 1) / p;
  return bytes <= 64 << 10 ? bytes * Math.log2(p) : 2 * bytes * (p - 1) / p; // recursive doubling, ring
}
const wireOf = (collectives: Collectives, p: number) =>
  Object.entries(collectives).reduce(
    (sum, [operator, { count, bytes }]) => sum + count * wire(operator, bytes / count, p),
    0,
  );

interface Case extends Division {
  readonly run?: TinyRun;
  /** Collectives of the program, by axis. */
  readonly program?: Readonly<Record<string, Collectives>>;
  /** Bytes that a rank sends, by axis or by several together; what all agree on aside. */
  readonly sent: Readonly<Record<string, number | ((rank: number) => number)>>;
}

/** The sum of losses, the squared norm, and the balance of experts: what all ranks agree on, in double. */
const agreed = (p: number) => wire("all-gather", 3 * 8 * p, p);
const whole = { zero1: { size: 1 } };
const cases: Record<string, Case> = {};
for (const p of [2, 4]) {
  for (const mode of ["mtp", "msp", "fsp", "isp"]) {
    const own = wireOf(modes[mode](p), p);
    cases[`${mode} ${p}`] = {
      ranks: p,
      parallel: { tensor: { mode, size: p }, ...whole },
      program: { tensor: modes[mode](p) },
      // Norms see some of the tokens only; in isp so does everything, and results are put together for the host.
      sent: mode === "mtp" ? { tensor: own } : mode === "isp"
        ? {
          tensor: own + wire("all-gather", M * 3 * word * T, p),
          weight_data: wire("all-reduce", word * (weights + norms), p),
        }
        : { tensor: own + wire("all-reduce", word * norms, p) },
    };
  }
}
cases["isp weight 2"] = {
  ranks: 2,
  parallel: { tensor: { mode: "isp", size: 1 }, weight: { size: 2 }, ...whole },
  program: { weight: weightAxis(M / 2) },
  sent: { weight: wireOf(weightAxis(M / 2), 2) + wire("all-reduce", word * norms, 2) },
};
cases["fsdp over 2"] = {
  ranks: 2,
  parallel: { zero1: { fsdp: true } },
  program: { weight: weightAxis(M / 2) },
  sent: { weight: wireOf(weightAxis(M / 2), 2), data: wire("all-reduce", word * norms, 2) },
};
cases["data 2"] = { ranks: 2, parallel: whole, sent: { data: wire("all-reduce", word * (weights + norms), 2) } };
cases["data 4"] = { ranks: 4, parallel: whole, sent: { data: wire("all-reduce", word * (weights + norms), 4) } };
// A rank sends the gradients that the other one updates, and the parameters that it updates itself: all of them, once.
cases["data 2, state divided"] = { ranks: 2, sent: { "data + zero": word * (weights + norms) } };
for (const p of [2, 4]) {
  cases[`${p} stages`] = {
    ranks: p,
    run: { ...run, model: { ...run.model, num_layers: 4 } },
    parallel: { pipeline: { size: p } },
    // Activations to the stage behind, gradients to the one before.
    sent: { pipeline: (rank) => M * stream * ((rank < p - 1 ? 1 : 0) + (rank > 0 ? 1 : 0)) },
  };
}
{
  const model = { num_kv_attention_heads: 4, num_experts: 2, qkv_bias: false }, E = 2;
  const dense = word * (L * (4 * H * H + E * H) + 2 * V * H + norms);
  // Each of two experts on a rank of its own, and every token goes to both: half of its rows leave, and come back.
  cases["expert 2, dropless"] = {
    ranks: 2,
    run: { model_type: "MIXTRALMOE", model: { ...model, top_k: 2, moe_type: "Dropless" }, tokens: T, microBatches: M },
    parallel: { expert: 2 },
    sent: { expert: M / 2 * L * (4 * stream + word * E / 2), "data + zero": dense },
  };
  // Where tensor ranks have some of each expert's width, two sums a layer are of tokens too, as of a dense layer, though every
  // token goes to two experts; and one is of the gradients of their weights.
  const byWidth = {
    ...modes.mtp(2),
    "all-reduce": together(times(M * (4 * L + 1), stream), times(M * L, word * T * E)),
  };
  cases["mtp 2, experts by width"] = {
    ranks: 2,
    run: { model_type: "MIXTRALMOE", model: { ...model, top_k: 2, moe_type: "Dropless" }, tokens: T, microBatches: M },
    parallel: { tensor: { mode: "mtp", size: 2 }, ...whole },
    program: { tensor: byWidth },
    sent: { tensor: wireOf(byWidth, 2) },
  };
  // Every expert has room for its even share of the tokens of each rank, filled or not.
  cases["expert 2, GShard"] = {
    ranks: 2,
    run: { model_type: "MIXTRALMOE", model: { ...model, top_k: 1 }, tokens: T, microBatches: M },
    parallel: { expert: 2 },
    sent: { expert: M / 2 * 4 * L * wire("all-to-all", E * word * (T / E) * H, 2), "data + zero": dense },
  };
}
cases["mtp 2 x data 2"] = {
  ranks: 4,
  parallel: { tensor: { mode: "mtp", size: 2 }, ...whole },
  // Each rank has one of the two rows, and half of every weight.
  sent: { tensor: wireOf(modes.mtp(2), 2) / M, data: wire("all-reduce", word * (weights / 2 + norms), 2) },
};

for (const [name, { run: own = run, program, sent, ...division }] of Object.entries(cases)) {
  Deno.test(`${name}: a step sends what the formulas say, counted at the sockets`, async () => {
    const { ranks } = division, { written, join } = countingSockets();
    const work = async (...[trainer, world]: Parameters<Parameters<typeof onWorld>[2]>) => {
      const { traffic } = await trainSteps(trainer, world, own, 0, 1);
      const { messages } = written[world.mesh.rank]!, counted = new Map(messages);
      /** Takes what was sent along an axis out of the count. */
      const take = (axis: Mode): number => {
        const { ranks, index } = world.mesh.group(axis);
        const me = ranks[index]!;
        const ids = [laneId(axis, ranks), ...ranks.map((other) => laneId(pairName(axis, me, other), [me, other]))];
        const bytes = ids.reduce((sum, id) => sum + (counted.get(id) ?? 0), 0);
        for (const id of ids) counted.delete(id);
        return bytes;
      };
      const axes = Object.keys(sent).map((axes) =>
        [axes, axes.split(" + ").reduce((sum, axis) => sum + take(axis as Mode), 0)] as const
      );
      const global = take("global"), others = [...counted.values()].reduce((sum, bytes) => sum + bytes, 0);
      return { traffic, bytes: { ...Object.fromEntries(axes), global, others } };
    };
    const moved = await onWorld(recordOf(own, division), ranks, work, join);
    moved.forEach(({ traffic, bytes }, rank) => {
      const counted = traffic.map(({ axis, operator, count, bytes }) => [`${axis} ${operator}`, { count, bytes }]);
      const formulas = Object.entries(program ?? {}).flatMap(([axis, all]) =>
        Object.entries(all).map(([operator, each]) => [`${axis} ${operator}`, each])
      );
      if (program) assertEquals(Object.fromEntries(counted), Object.fromEntries(formulas), "in the program");
      const expected = Object.entries(sent).map(([axis, of]) => [axis, typeof of === "number" ? of : of(rank)]);
      assertEquals(bytes, { ...Object.fromEntries(expected), global: agreed(ranks), others: 0 }, "in messages");
    });
    for (const { socket, headers, control, messages } of written) {
      const bodies = [...messages.values()].reduce((sum, bytes) => sum + bytes, 0);
      assertEquals(socket, headers + control + bodies, "at the socket");
    }
  });
}
