/**
 * The router of a mixture of experts: probabilities, the experts that each token chooses, what each of them counts in the
 * token's output, and the loss that keeps experts evenly used. All of it is `f32`: what a token chooses turns on small
 * differences.
 *
 * Shapes: T tokens, E experts, k choices a token. A token's choices stand side by side: choice j of token t is at
 * `t k + j`. A choice that is no expert's number, such as `0xffffffff`, is none.
 */
import { type Kernel, leastBytes, type Operand } from "../kernel.ts";
import { bindings, float, itemText, requireSizes } from "../norm/rows.ts";
import * as reference from "./reference.ts";

export { none } from "./reference.ts";

export interface RouterSizes {
  readonly tokens: number;
  readonly experts: number;
  /** Experts that each token goes to. */
  readonly choices: number;
}

/**
 * What the weights of a token's choices are divided by. `none`: nothing, they are the probabilities. `all`: the sum over
 * its choices. `kept`: the sum over those that found room.
 */
export type Normalization = "none" | "all" | "kept";

function checkSizes(name: string, { tokens, experts, choices }: RouterSizes): void {
  requireSizes(name, { tokens, experts, choices });
  if (choices > experts) {
    throw new RangeError(
      `Cannot make ${name}: ${choices} choices of ${experts} experts; at most ${experts} would work`,
    );
  }
}

const all = (operands: readonly Operand[]) => operands.map((_, index) => index);

/** Text of a constant `none` and of a kernel whose items are independent. */
function itemPass(operands: readonly Operand[], count: number, body: string) {
  const { open, workgroups } = itemText(count);
  const code = `
${bindings(operands)}
const none = 0xffffffffu;
${open}
${body}
}
`;
  return [{ code, workgroups, operands: all(operands) }];
}

/**
 * Softmax of short rows, an invocation a row.
 *
 * Operands: x `[rows, columns]` → y `[rows, columns]`.
 *
 * @throws {RangeError} when a size is not a positive whole number
 *
 * @example
 * ```ts
 * import { softmaxForward } from "./mod.ts";
 * const y = new Float32Array(2);
 * softmaxForward({ rows: 1, columns: 2 }).reference([new Float32Array([3, 3]), y]);
 * console.assert(y[0] === 0.5 && y[1] === 0.5);
 * ```
 */
export function softmaxForward({ rows, columns }: { readonly rows: number; readonly columns: number }): Kernel {
  requireSizes("softmax.forward", { rows, columns });
  const length = rows * columns;
  const operands: readonly Operand[] = [
    { name: "x", type: "f32", length, access: "read" },
    { name: "y", type: "f32", length, access: "write" },
  ];
  return {
    name: "softmax.forward",
    operands,
    cost: { flops: 4 * length, bytes: leastBytes(operands) },
    reference: (views) => reference.softmaxForward(columns, views),
    passes: () =>
      itemPass(
        operands,
        rows,
        `
  let first = i * ${columns}u;
  var largest = x[first];
  for (var c = 1u; c < ${columns}u; c++) { largest = max(largest, x[first + c]); }
  var sum = 0f;
  for (var c = 0u; c < ${columns}u; c++) { sum += exp(x[first + c] - largest); }
  for (var c = 0u; c < ${columns}u; c++) { y[first + c] = exp(x[first + c] - largest) / sum; }`,
      ),
  };
}

/**
 * Gradient of {@linkcode softmaxForward}.
 *
 * Operands: y `[rows, columns]`, dY `[rows, columns]` → dX `[rows, columns]`.
 *
 * @throws {RangeError} when a size is not a positive whole number
 */
export function softmaxBackward({ rows, columns }: { readonly rows: number; readonly columns: number }): Kernel {
  requireSizes("softmax.backward", { rows, columns });
  const length = rows * columns;
  const operands: readonly Operand[] = [
    { name: "y", type: "f32", length, access: "read" },
    { name: "dY", type: "f32", length, access: "read" },
    { name: "dX", type: "f32", length, access: "write" },
  ];
  return {
    name: "softmax.backward",
    operands,
    cost: { flops: 4 * length, bytes: leastBytes(operands) },
    reference: (views) => reference.softmaxBackward(columns, views),
    passes: () =>
      itemPass(
        operands,
        rows,
        `
  let first = i * ${columns}u;
  var along = 0f;
  for (var c = first; c < first + ${columns}u; c++) { along += y[c] * dY[c]; }
  for (var c = first; c < first + ${columns}u; c++) { dX[c] = y[c] * (dY[c] - along); }`,
      ),
  };
}

/**
 * The `choices` experts of highest logit, highest first; of equal ones the first. With `noiseFrom`, choices from that one
 * on go by logit plus Gumbel noise −ln(−ln u), which draws from the softmax (Jang et al. 2017).
 *
 * Operands: logits `[T, E]`, [uniform `[T, E]` in (0, 1)] → choice u32 `[T, k]`.
 *
 * @throws {RangeError} when a size is not a positive whole number, or more experts are to be chosen than there are
 *
 * @example
 * ```ts
 * import { choose } from "./mod.ts";
 * const choice = new Uint32Array(2);
 * choose({ tokens: 1, experts: 3, choices: 2 }).reference([new Float32Array([1, 5, 3]), choice]);
 * console.assert(choice.join() === "1,2");
 * ```
 */
export function choose(sizes: RouterSizes & { readonly noiseFrom?: number }): Kernel {
  checkSizes("moe.choose", sizes);
  const { tokens, experts, choices, noiseFrom } = sizes, noisy = noiseFrom !== undefined;
  const operands: readonly Operand[] = [
    { name: "logits", type: "f32", length: tokens * experts, access: "read" },
    ...(noisy ? [{ name: "uniform_", type: "f32", length: tokens * experts, access: "read" } as const] : []),
    { name: "choice", type: "u32", length: tokens * choices, access: "write" },
  ];
  return {
    name: "moe.choose",
    shape: `${choices} of ${tokens} x ${experts}`,
    operands,
    cost: { flops: tokens * experts * choices, bytes: leastBytes(operands) },
    reference: (views) => reference.choose(sizes, noiseFrom, views),
    passes: () =>
      itemPass(
        operands,
        tokens,
        `
  for (var j = 0u; j < ${choices}u; j++) {
    var best = none;
    var highest = 0f;
    for (var e = 0u; e < ${experts}u; e++) {
      var taken = false;
      for (var b = 0u; b < j; b++) { taken = taken || choice[i * ${choices}u + b] == e; }
      if (taken) { continue; }
      ${
          noisy
            ? `var score = logits[i * ${experts}u + e];
      if (j >= ${noiseFrom}u) { score -= log(-log(uniform_[i * ${experts}u + e])); }`
            : `let score = logits[i * ${experts}u + e];`
        }
      if (best == none || score > highest) { best = e; highest = score; }
    }
    choice[i * ${choices}u + j] = best;
  }`,
      ),
  };
}

function weighOperands({ tokens, experts, choices }: RouterSizes): Operand[] {
  return [
    { name: "probability", type: "f32", length: tokens * experts, access: "read" },
    { name: "choice", type: "u32", length: tokens * choices, access: "read" },
    { name: "slot", type: "u32", length: tokens * choices, access: "read" },
  ];
}
const countsText = (normalize: Normalization) =>
  normalize === "all" ? "true" : normalize === "kept" ? "slot[at] != none" : "false";

/**
 * What each choice counts in its token's output: the expert's probability, divided as `normalize` says; 0 for a choice
 * without a slot, which was dropped.
 *
 * Operands: probability `[T, E]`, choice u32 `[T, k]`, slot u32 `[T, k]` → weight `[T, k]`.
 *
 * @throws {RangeError} when a size is not a positive whole number, or more experts are to be chosen than there are
 */
export function weighForward(sizes: RouterSizes & { readonly normalize: Normalization }): Kernel {
  checkSizes("moe.weigh", sizes);
  const { tokens, experts, choices, normalize } = sizes;
  const operands: readonly Operand[] = [
    ...weighOperands(sizes),
    { name: "weight", type: "f32", length: tokens * choices, access: "write" },
  ];
  return {
    name: "moe.weigh",
    operands,
    cost: { flops: 3 * tokens * choices, bytes: leastBytes(operands) },
    reference: (views) => reference.weighForward(sizes, normalize, views),
    passes: () =>
      itemPass(
        operands,
        tokens,
        `
  var sum = 0f;
  for (var at = i * ${choices}u; at < (i + 1u) * ${choices}u; at++) {
    let e = choice[at];
    if (e < ${experts}u && ${countsText(normalize)}) { sum += probability[i * ${experts}u + e]; }
  }
  let divisor = ${normalize === "none" ? "1f" : `max(sum, ${float(reference.leastSum)})`};
  for (var at = i * ${choices}u; at < (i + 1u) * ${choices}u; at++) {
    let e = choice[at];
    var share = 0f;
    if (e < ${experts}u && slot[at] != none) { share = probability[i * ${experts}u + e] / divisor; }
    weight[at] = share;
  }`,
      ),
  };
}

/**
 * Gradient of {@linkcode weighForward}.
 *
 * Operands: probability `[T, E]`, choice u32 `[T, k]`, slot u32 `[T, k]`, dWeight `[T, k]` → dProbability `[T, E]`.
 *
 * @throws {RangeError} when a size is not a positive whole number, or more experts are to be chosen than there are
 */
export function weighBackward(sizes: RouterSizes & { readonly normalize: Normalization }): Kernel {
  checkSizes("moe.weighBackward", sizes);
  const { tokens, experts, choices, normalize } = sizes;
  const operands: readonly Operand[] = [
    ...weighOperands(sizes),
    { name: "dWeight", type: "f32", length: tokens * choices, access: "read" },
    { name: "dProbability", type: "f32", length: tokens * experts, access: "write" },
  ];
  const least = float(reference.leastSum);
  return {
    name: "moe.weighBackward",
    operands,
    cost: { flops: 6 * tokens * choices, bytes: leastBytes(operands) },
    reference: (views) => reference.weighBackward(sizes, normalize, views),
    passes: () =>
      itemPass(
        operands,
        tokens,
        `
  var sum = 0f;
  var flowing = 0f;
  for (var at = i * ${choices}u; at < (i + 1u) * ${choices}u; at++) {
    let e = choice[at];
    if (e >= ${experts}u) { continue; }
    let p = probability[i * ${experts}u + e];
    if (${countsText(normalize)}) { sum += p; }
    if (slot[at] != none) { flowing += dWeight[at] * p; }
  }
  let divisor = ${normalize === "none" ? "1f" : `max(sum, ${least})`};
  let shared_ = ${normalize === "none" ? "0f" : `select(flowing / divisor / divisor, 0f, sum < ${least})`};
  for (var e = 0u; e < ${experts}u; e++) { dProbability[i * ${experts}u + e] = 0f; }
  for (var at = i * ${choices}u; at < (i + 1u) * ${choices}u; at++) {
    let e = choice[at];
    if (e >= ${experts}u) { continue; }
    var value = 0f;
    if (slot[at] != none) { value = dWeight[at] / divisor; }
    if (${countsText(normalize)}) { value -= shared_; }
    dProbability[i * ${experts}u + e] = value;
  }`,
      ),
  };
}

export interface BalanceSizes extends RouterSizes {
  /** Choices of each token, from the first on, that count as its experts' load: 1 for GShard, all for dropless layers. */
  readonly counted: number;
}

/** Lanes that sum an expert's column. */
const lanes = 64;

/**
 * The loss that is least where experts are evenly used: `E / (T c) Σ_e n_e mean_t p[t, e]`, where n_e counts the first c
 * choices of all tokens that are e (Lepikhin et al. 2020, "GShard"; Fedus et al. 2021, "Switch Transformers"). It is 1
 * where all is even.
 *
 * Operands: probability `[T, E]`, choice u32 `[T, k]` → loss `[1]`, load `[E]` (n_e); then scratch.
 *
 * @throws {RangeError} when a size is not a positive whole number, or more choices are counted than there are
 *
 * @example
 * ```ts
 * import { balanceForward } from "./mod.ts";
 * const loss = new Float32Array(1), load = new Float32Array(2);
 * const kernel = balanceForward({ tokens: 2, experts: 2, choices: 1, counted: 1 });
 * kernel.reference([new Float32Array([0.5, 0.5, 0.5, 0.5]), new Uint32Array([0, 1]), loss, load, new Float32Array(2)]);
 * console.assert(loss[0] === 1 && load.join() === "1,1");
 * ```
 */
export function balanceForward(sizes: BalanceSizes): Kernel {
  checkBalance("moe.balance", sizes);
  const { tokens, experts, choices, counted } = sizes;
  const operands: readonly Operand[] = [
    { name: "probability", type: "f32", length: tokens * experts, access: "read" },
    { name: "choice", type: "u32", length: tokens * choices, access: "read" },
    { name: "loss", type: "f32", length: 1, access: "write" },
    { name: "load", type: "f32", length: experts, access: "write" },
    { name: "product", type: "f32", length: experts, access: "scratch" },
  ];
  return {
    name: "moe.balance",
    operands,
    cost: { flops: tokens * experts, bytes: leastBytes(operands) },
    reference: (views) => reference.balanceForward(sizes, counted, views),
    passes() {
      const columns = [0, 1, 3, 4], sum = [4, 2];
      const code = `
${bindings(columns.map((index) => operands[index]))}
var<workgroup> sums: array<vec2f, ${lanes}>;
@compute @workgroup_size(${lanes})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let e = group.x;
  var mine = vec2f(); // probability, choices
  for (var t = lane; t < ${tokens}u; t += ${lanes}u) {
    mine.x += probability[t * ${experts}u + e];
    for (var j = 0u; j < ${counted}u; j++) { mine.y += select(0f, 1f, choice[t * ${choices}u + j] == e); }
  }
  sums[lane] = mine;
  workgroupBarrier();
  ${
        [32, 16, 8, 4, 2, 1].map((half) =>
          `if (lane < ${half}u) { sums[lane] += sums[lane + ${half}u]; }\n  workgroupBarrier();`
        ).join("\n  ")
      }
  if (lane == 0u) {
    load[e] = sums[0].y;
    product[e] = sums[0].x * sums[0].y;
  }
}
`;
      const total = `
${bindings(sum.map((index) => ({ ...operands[index], access: index === 4 ? "read" : "write" })))}
@compute @workgroup_size(1)
fn main() {
  var sum = 0f;
  for (var e = 0u; e < ${experts}u; e++) { sum += product[e]; }
  loss[0] = sum * ${float(Math.fround(balanceFactor(sizes)))};
}
`;
      return [
        { code, workgroups: [experts, 1, 1], operands: columns },
        { code: total, workgroups: [1, 1, 1], operands: sum },
      ];
    },
  };
}

const balanceFactor = ({ tokens, experts, counted }: BalanceSizes) => experts / (tokens * counted) / tokens;

function checkBalance(name: string, sizes: BalanceSizes): void {
  checkSizes(name, sizes);
  requireSizes(name, { counted: sizes.counted });
  if (sizes.counted > sizes.choices) {
    throw new RangeError(`Cannot make ${name}: ${sizes.counted} of ${sizes.choices} choices cannot be counted`);
  }
}

/**
 * Gradient of {@linkcode balanceForward} times a weight that the host gives.
 *
 * Operands: load `[E]`, weight `[1]` → dProbability `[T, E]`.
 *
 * @throws {RangeError} when a size is not a positive whole number, or more choices are counted than there are
 */
export function balanceBackward(sizes: BalanceSizes): Kernel {
  checkBalance("moe.balanceBackward", sizes);
  const { tokens, experts, counted } = sizes;
  const operands: readonly Operand[] = [
    { name: "load", type: "f32", length: experts, access: "read" },
    { name: "weight", type: "f32", length: 1, access: "read" },
    { name: "dProbability", type: "f32", length: tokens * experts, access: "write" },
  ];
  return {
    name: "moe.balanceBackward",
    operands,
    cost: { flops: tokens * experts, bytes: leastBytes(operands) },
    reference: (views) => reference.balanceBackward(sizes, counted, views),
    passes: () =>
      itemPass(
        operands,
        tokens * experts,
        `  dProbability[i] = weight[0] * ${float(Math.fround(balanceFactor(sizes)))} * load[i % ${experts}u];`,
      ),
  };
}
