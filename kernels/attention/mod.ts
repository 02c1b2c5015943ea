/** Causal attention within segments of a flat stream of tokens, forward and backward. */
import { choose, sizeClass } from "../choices.ts";
import { type DeviceTraits, elementBytes, type Kernel, leastBytes, type Operand } from "../kernel.ts";
import { subgroupMatrix } from "../matrix_unit.ts";
import { requireSizes } from "../norm/rows.ts";
import type { BlockForm } from "./block_form.ts";
import { forwardPass, keyGradientPass, queryGradientPass, rowDataPass } from "./flash.ts";
import {
  fitsMatrixBlocks,
  keptForm,
  matrixBackwardPasses,
  matrixForwardPass,
  matrixKeptPasses,
  type MatrixTiling,
  matrixTilings,
} from "./matrix_blocks.ts";
import { pairGradientPasses, type PairGradients } from "./pair_gradients.ts";
import * as reference from "./reference.ts";
import { pairsOperand, type Rounds, roundsOf, scratchOperand } from "./rounds.ts";
import type { AttentionOptions, AttentionShape } from "./shape.ts";
import { isScaled, largestOperand, largestPass } from "./scales.ts";
import { subgroupBlocks } from "./subgroup_blocks.ts";
import { workgroupBlocks } from "./workgroup_blocks.ts";

export type { AttentionOptions } from "./shape.ts";

/**
 * Causal grouped-query attention over a flat stream of tokens cut into segments: token t sees the tokens
 * `start[t]`…t. o = softmax(scale · q kᵀ) v.
 *
 * Operands: q `[tokens, heads, headDim]`, k and v `[tokens, kvHeads, headDim]`, start and end u32 `[tokens]` (first
 * token of the token's segment, one past its last) → o, shaped as q, and logSumExp `[tokens, heads]` of the scaled
 * scores, which the backward pass needs; for `bf16` scratch of a few words (`scales.ts`). Memory is linear in the tokens.
 *
 * Its cost is counted for one segment: shorter ones do less.
 *
 * @throws {RangeError} when a size does not fit
 *
 * @example
 * ```ts
 * import { attentionForward } from "./mod.ts";
 * // Two tokens, each a segment of its own: each gets its own value back.
 * const o = new Float32Array(4), logSumExp = new Float32Array(2);
 * attentionForward({ tokens: 2, heads: 1, kvHeads: 1, headDim: 2 }).reference([
 *   new Float32Array([1, 0, 0, 1]), new Float32Array([1, 2, 3, 4]), new Float32Array([5, 6, 7, 8]),
 *   new Uint32Array([0, 1]), new Uint32Array([1, 2]), o, logSumExp,
 * ]);
 * console.assert(o.join() === "5,6,7,8");
 * ```
 */
export function attentionForward(options: AttentionOptions): Kernel {
  const shape = shapeOf("attention.forward", options);
  const { queries, keys, rows } = lengthsOf(shape);
  const operands: readonly Operand[] = [
    { name: "q", type: shape.type, length: queries, access: "read" },
    { name: "k", type: shape.type, length: keys, access: "read" },
    { name: "v", type: shape.type, length: keys, access: "read" },
    { name: "start", type: "u32", length: shape.tokens, access: "read" },
    { name: "end", type: "u32", length: shape.tokens, access: "read" },
    { name: "o", type: shape.type, length: queries, access: "write" },
    { name: "logSumExp", type: "f32", length: rows, access: "write" },
    ...(isScaled(shape) ? [largestOperand(3)] : []),
  ];
  return {
    name: "attention.forward",
    operands,
    segment: shape.longest ?? shape.tokens,
    cost: { flops: 2 * productFlops(shape), bytes: leastBytes(operands) },
    reference: (views) => reference.attentionForward(shape, views),
    passes(traits) {
      const form = formFor("forward", shape, traits);
      if ("forward" in form) {
        return [...scales(shape, operands), matrixForwardPass(shape, operands, traits, subgroupMatrix, form.forward)];
      }
      return [forwardPass("pairs" in form ? form.otherwise : form, shape, operands, traits)];
    },
  };
}

/**
 * The gradient of {@linkcode attentionForward}, from its outputs and the gradient dO of o. Each sum has one owner, so
 * the result repeats bit for bit.
 *
 * Operands: q, k, v, o, logSumExp, dO (shaped as o), start, end → dQ, dK, dV; scratch of 4 words a token and head, for
 * `bf16` a few more, and what pairs of blocks take (`rounds.ts`), which is bounded.
 *
 * @throws {RangeError} when a size does not fit
 */
export function attentionBackward(options: AttentionOptions): Kernel {
  const shape = shapeOf("attention.backward", options), rounds = roundsFor(shape);
  const { queries, keys, rows } = lengthsOf(shape);
  const operands: readonly Operand[] = [
    { name: "q", type: shape.type, length: queries, access: "read" },
    { name: "k", type: shape.type, length: keys, access: "read" },
    { name: "v", type: shape.type, length: keys, access: "read" },
    { name: "o", type: shape.type, length: queries, access: "read" },
    { name: "logSumExp", type: "f32", length: rows, access: "read" },
    { name: "dO", type: shape.type, length: queries, access: "read" },
    { name: "start", type: "u32", length: shape.tokens, access: "read" },
    { name: "end", type: "u32", length: shape.tokens, access: "read" },
    { name: "dQ", type: shape.type, length: queries, access: "write" },
    { name: "dK", type: shape.type, length: keys, access: "write" },
    { name: "dV", type: shape.type, length: keys, access: "write" },
    { name: "rowData", type: "u32", length: 4 * rows, access: "scratch" },
    ...(isScaled(shape) ? [largestOperand(4)] : []),
    ...(rounds ? [pairsOperand(rounds), scratchOperand(rounds, shape.type, partsOf(shape))] : []),
  ];
  return {
    name: "attention.backward",
    operands,
    segment: shape.longest ?? shape.tokens,
    cost: { flops: 5 * productFlops(shape), bytes: leastBytes(operands) },
    reference: (views) => reference.attentionBackward(shape, views),
    passes(traits) {
      const form = formFor("backward", shape, traits, rounds);
      if ("forward" in form) {
        return [
          ...scales(shape, operands),
          rowDataPass(shape, operands, traits),
          ...(form.kept
            ? matrixKeptPasses(rounds!, shape, operands, traits, subgroupMatrix, { ...form, kept: form.kept })
            : matrixBackwardPasses(shape, operands, traits, subgroupMatrix, form)),
        ];
      }
      const byPairs = "pairs" in form, blocks = byPairs ? form.otherwise : form;
      // Sums of both gradients of a long head do not fit the registers of one invocation.
      const fit = 2 * blocks.localRows * blocks.quads <= mostSums;
      const together: readonly ("dK" | "dV")[][] = fit ? [["dK", "dV"]] : [["dK"], ["dV"]];
      return [
        rowDataPass(shape, operands, traits),
        ...(byPairs ? pairGradientPasses(form.pairs, rounds!, shape, operands, traits) : []),
        queryGradientPass(blocks, shape, operands, traits, byPairs),
        ...together.map((gradients) => keyGradientPass(blocks, shape, operands, traits, gradients, byPairs)),
      ];
    },
  };
}

/** Tokens from which on scratch for pairs of blocks is worth its place. */
const fewestByPairs = 1024;

/** Rounds of the backward pass by pairs; none where it has no form, or needs too much scratch. */
function roundsFor(shape: AttentionShape): Rounds | undefined {
  const { tokens, headDim, type } = shape;
  if (headDim % 16 !== 0 || tokens < fewestByPairs) return undefined;
  if (type === "f32") return roundsOf(shape, "f32");
  if (!fitsMatrixBlocks(shape)) return undefined;
  const { subgroups, rows } = matrixTilings(shape)[keptForm].keyGradient;
  return roundsOf(shape, type, { block: subgroups * rows, parts: partsOf(shape) });
}

/** Vector units keep weights and gradients of scores, matrix units these alone. */
const partsOf = ({ type }: AttentionShape): 1 | 2 => type === "f32" ? 2 : 1;

/** Whether scratch of rounds can be bound, beside eight other operands on matrix units, nine where they are scaled. */
const fitsPairs = (rounds: Rounds, shape: AttentionShape, { limits }: DeviceTraits) =>
  limits.maxComputeWorkgroupStorageSize >= 20 << 10 &&
  limits.maxStorageBuffersPerShaderStage >= (shape.type === "f32" ? 8 : isScaled(shape) ? 10 : 9) &&
  limits.maxStorageBufferBindingSize >=
    elementBytes[shape.type] * scratchOperand(rounds, shape.type, partsOf(shape)).length;

const pairForm = ({ headDim }: AttentionShape): PairGradients => ({
  scores: { rows: 64, columns: 64, blockRows: 8, blockColumns: 4, depth: 16 },
  products: {
    columns: headDim <= 32 ? 32 : headDim % 128 === 0 ? 128 : 64,
    blockRows: 8,
    blockColumns: headDim <= 32 ? 4 : 8,
    depth: 16,
  },
});

/** By pairs, and in blocks what has too many pairs. */
interface PairForm {
  readonly pairs: PairGradients;
  readonly otherwise: BlockForm;
}

const scales = (shape: AttentionShape, operands: readonly Operand[]) => isScaled(shape) ? [largestPass(operands)] : [];

const onMatrixUnits = (shape: AttentionShape, { features, limits }: DeviceTraits) =>
  features.matrixUnits && fitsMatrixBlocks(shape) && limits.maxComputeWorkgroupStorageSize >= 46 << 10;

/** `vec4f` that an invocation may keep as sums, before registers spill and compilers slow down. */
const mostSums = 32;

/** The form chosen for a device, else the best one known. */
function formFor(
  pass: "forward" | "backward",
  shape: AttentionShape,
  traits: DeviceTraits,
  rounds?: Rounds,
): BlockForm | MatrixTiling | PairForm {
  const { software, subgroupSize, limits } = traits, { headDim, tokens, heads, type } = shape;
  const subgroups = subgroupSize >= 4 && subgroupSize <= 32 ? subgroupBlocks(headDim, traits) : undefined;
  const fits = subgroups !== undefined && subgroups.localRows * subgroups.quads <= mostSums;
  const short = { ...traits, limits: { ...limits, maxComputeWorkgroupStorageSize: 16 << 10 } };
  const forms = new Map<string, () => BlockForm | MatrixTiling | PairForm>();
  if (onMatrixUnits(shape, traits)) {
    for (const [name, tiling] of Object.entries(matrixTilings(shape))) {
      // Forward passes keep nothing.
      if (tiling.kept && !(rounds && fitsPairs(rounds, shape, traits))) continue;
      forms.set(name, () => tiling);
    }
  }
  if (software && fits) forms.set("subgroups", () => subgroups);
  if (!software && type === "f32" && rounds && fitsPairs(rounds, shape, traits)) {
    forms.set("pairs", () => ({ pairs: pairForm(shape), otherwise: workgroupBlocks(headDim, traits) }));
  }
  forms.set("tiles", () => workgroupBlocks(headDim, traits));
  if (limits.maxComputeWorkgroupStorageSize > 16 << 10) {
    forms.set("tiles, short slices", () => workgroupBlocks(headDim, short));
  }
  if (!software && fits) forms.set("subgroups", () => subgroups);
  const question = `attention.${pass} ${type} ${sizeClass(tokens)} x ${heads} x ${headDim}`;
  return forms.get(choose(traits, question, [...forms.keys()]))!();
}

function shapeOf(kernel: string, options: AttentionOptions): AttentionShape {
  const { tokens, heads, kvHeads, headDim, scale = 1 / Math.sqrt(headDim), longest = tokens, type = "f32" } = options;
  requireSizes(kernel, { tokens, heads, kvHeads, headDim, longest });
  if (heads % kvHeads !== 0) {
    throw new RangeError(`Cannot make ${kernel}: kvHeads must divide heads, current values are ${kvHeads}, ${heads}`);
  }
  if (headDim % 2 !== 0 || headDim > 256) {
    throw new RangeError(`Cannot make ${kernel}: headDim must be even and at most 256, current value is ${headDim}`);
  }
  if (!Number.isFinite(scale)) {
    throw new RangeError(`Cannot make ${kernel}: scale must be a finite number, current value is ${scale}`);
  }
  return { tokens, heads, kvHeads, headDim, scale, longest: Math.min(longest, tokens), type };
}

function lengthsOf({ tokens, heads, kvHeads, headDim }: AttentionShape) {
  return { queries: tokens * heads * headDim, keys: tokens * kvHeads * headDim, rows: tokens * heads };
}

/** One product of all queries with the keys they see, the stream being one segment. */
function productFlops({ tokens, heads, headDim }: AttentionShape): number {
  return 2 * heads * headDim * tokens * (tokens + 1) / 2;
}
