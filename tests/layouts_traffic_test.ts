/**
 * What a step moves between ranks, against closed formulas of each tensor mode: collectives as the program counts them,
 * by axis, and bytes as the connections count them, by peer.
 */
import { assertEquals } from "@std/assert";
import { type Division, onWorld, recordOf, type TinyRun, trainSteps } from "./layouts.ts";

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

/** What one rank sends and receives in a collective on a tensor of so many bytes. */
function wire(operator: string, bytes: number, p: number): number {
  if (operator !== "all-reduce") return 2 * bytes * (p - 1) / p;
  return bytes <= 64 << 10 ? 2 * bytes * Math.log2(p) : 4 * bytes * (p - 1) / p; // recursive doubling, ring
}

interface Case extends Division {
  readonly axis: "tensor" | "weight";
  readonly expected: Collectives;
  /** All-reduces at the step's end: bytes of gradients that are terms of a sum. */
  readonly sums: readonly number[];
  /** All-gathers at the step's end, beside what all agree on. */
  readonly results?: number;
}

/** The sum of losses, the squared norm, and the balance of experts: what all ranks agree on, in double. */
const agreedNumbers = 3;
const noDivision = { zero1: { size: 1 } };
const cases: Record<string, Case> = {};
for (const p of [2, 4]) {
  for (const mode of ["mtp", "msp", "fsp", "isp"]) {
    cases[`${mode} ${p}`] = {
      ranks: p,
      parallel: { tensor: { mode, size: p }, ...noDivision },
      axis: "tensor",
      expected: modes[mode](p),
      // Norms see some of the tokens only; in isp so does everything.
      sums: mode === "mtp" ? [] : mode === "isp" ? [word * (weights + norms)] : [word * norms],
      ...(mode === "isp" ? { results: M * 3 * word * T } : {}),
    };
  }
}
cases["isp weight 2"] = {
  ranks: 2,
  parallel: { tensor: { mode: "isp", size: 1 }, weight: { size: 2 }, ...noDivision },
  axis: "weight",
  expected: weightAxis(M / 2),
  sums: [word * norms],
};

for (const [name, { axis, expected, sums, results = 0, ...division }] of Object.entries(cases)) {
  Deno.test(`${name}: a step moves what the formulas say`, async () => {
    const p = division.ranks;
    const moved = await onWorld(recordOf(run, division), p, async (trainer, world, transport) => {
      const { traffic } = await trainSteps(trainer, world, run, 0, 1);
      return { traffic, bytes: transport.bytesMoved() };
    });
    const total = (parts: readonly number[]) => parts.reduce((sum, part) => sum + part, 0);
    const bytes = total([
      ...Object.entries(expected).map(([operator, { count, bytes }]) => count * wire(operator, bytes / count, p)),
      ...sums.map((size) => wire("all-reduce", size, p)),
      wire("all-gather", results, p),
      wire("all-gather", agreedNumbers * 8 * p, p),
    ]);
    for (const rank of moved) {
      const counted = rank.traffic.map(({ axis, operator, count, bytes }) => [`${axis} ${operator}`, { count, bytes }]);
      const formulas = Object.entries(expected).map(([operator, each]) => [`${axis} ${operator}`, each]);
      assertEquals(Object.fromEntries(counted), Object.fromEntries(formulas));
      assertEquals(rank.bytes, bytes, "bytes at the connections");
    }
  });
}

Deno.test("mtp 2 x data 2: each axis moves its own bytes, over its own connections", async () => {
  const division: Division = { ranks: 4, parallel: { tensor: { mode: "mtp", size: 2 }, ...noDivision } };
  const moved = await onWorld(recordOf(run, division), 4, async (trainer, world, transport) => {
    await trainSteps(trainer, world, run, 0, 1);
    const { mesh } = world, peer = (axis: "tensor" | "data") => mesh.group(axis).ranks[1 - mesh.index(axis)];
    return { tensor: transport.bytesMoved(peer("tensor")), data: transport.bytesMoved(peer("data")) };
  });
  const agreed = 2 * 8 * agreedNumbers; // to and from every rank
  // Each rank has one of the two rows, and half of every weight.
  const tensor = Object.entries(modes.mtp(2)).map(([operator, { count, bytes }]) =>
    count / M * wire(operator, bytes / count, 2)
  );
  const expected = {
    tensor: tensor.reduce((sum, part) => sum + part, agreed),
    data: wire("all-reduce", word * (weights / 2 + norms), 2) + agreed,
  };
  for (const rank of moved) assertEquals(rank, expected);
});
