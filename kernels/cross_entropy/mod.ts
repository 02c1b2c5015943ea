/** Softmax cross entropy with label smoothing, and the arg-max for accuracy. */
import { type Kernel, leastBytes, type Operand } from "../kernel.ts";
import { float, layOutRows, requireSizes, rowText, vectorPrelude } from "../norm/rows.ts";
import { subgroupPrelude } from "../matmul/dialect.ts";
import { storage, type Stored } from "../storage.ts";
import { joinText, notANumberText, nothingYet, onlineText, takeIn } from "./online.ts";
import * as reference from "./reference.ts";

export { crossEntropyMerge, crossEntropyStatistics, statisticsPerRow } from "./parallel.ts";

/** `type` is that of the logits, and so of their gradient; all else is `f32`. */
export interface CrossEntropySizes extends Stored {
  readonly rows: number;
  /** Vocabulary. */
  readonly columns: number;
  /** Share s of the target spread evenly over the vocabulary, in [0, 1). 0: none. */
  readonly labelSmoothing: number;
}

function checkSizes(name: string, { rows, columns, labelSmoothing }: CrossEntropySizes): void {
  requireSizes(name, { rows, columns });
  if (!(labelSmoothing >= 0 && labelSmoothing < 1)) {
    throw new RangeError(
      `Cannot make ${name}: labelSmoothing must be at least 0 and below 1, current value is ${labelSmoothing}`,
    );
  }
}

/**
 * Loss of each row: `(1 − s) · nll + s · mean over the vocabulary of −log p`, with `nll = −log p(label)`.
 *
 * Operands: logits `[rows, columns]`, labels i32 `[rows]` → loss `[rows]`, nll `[rows]` (without smoothing), logSumExp
 * `[rows]`, correct u32 `[rows]` (1 where the arg-max, the first of equals, is the label). A row whose label is negative
 * is ignored: its loss, nll and correct are 0. So is one whose label is past the vocabulary; whoever reads tokens
 * checks them.
 *
 * Maximum, sum of exponentials, arg-max and sum come from one reading of the logits (Milakov and Gimelshein 2018, "Online
 * normalizer calculation for softmax").
 *
 * @throws {RangeError} when a size is not a positive whole number or the smoothing is outside [0, 1)
 *
 * @example
 * ```ts
 * import { crossEntropyForward } from "./mod.ts";
 * const loss = new Float32Array(1), nll = new Float32Array(1), logSumExp = new Float32Array(1);
 * crossEntropyForward({ rows: 1, columns: 2, labelSmoothing: 0 }).reference([
 *   new Float32Array([0, 0]), new Int32Array([1]), loss, nll, logSumExp, new Uint32Array(1),
 * ]);
 * console.assert(Math.abs(loss[0] - Math.LN2) < 1e-6);
 * ```
 */
export function crossEntropyForward(sizes: CrossEntropySizes): Kernel {
  const { rows, columns, labelSmoothing, type = "f32" } = sizes;
  checkSizes("crossEntropy.forward", sizes);
  const operands: readonly Operand[] = [
    { name: "logits", type, length: rows * columns, access: "read" },
    { name: "labels", type: "i32", length: rows, access: "read" },
    { name: "loss", type: "f32", length: rows, access: "write" },
    { name: "nll", type: "f32", length: rows, access: "write" },
    { name: "logSumExp", type: "f32", length: rows, access: "write" },
    { name: "correct", type: "u32", length: rows, access: "write" },
  ];
  return {
    name: "crossEntropy.forward",
    operands,
    cost: { flops: 4 * rows * columns, bytes: leastBytes(operands) },
    reference: (views) => reference.crossEntropyForward(sizes, views),
    passes(traits) {
      const layout = layOutRows({ rows, columns, values: 1, once: "read" }, traits);
      const { width } = layout, smooth = labelSmoothing > 0;
      const { directives, bindings, load, bound } = storage(traits, operands, { logits: "V" }, width, ["logits"]);
      const { open, fours } = rowText(layout, { v: load("logits", "base + c") });
      const code = `${directives}${subgroupPrelude(traits)}${vectorPrelude(width)}
${bindings}
${onlineText(layout, traits)}
${open}
  var mine = ${nothingYet};
  ${fours(takeIn)}
  ${joinText(layout, load("logits", "base + c"))}
  if (lane == 0u) {
    let exact = log(all.exponentials);
    let logarithm = select(exact, notANumber(exact), hasNoLoss(all.most, all.sum));
    logSumExp[row] = all.most + logarithm;
    let label = labels[row];
    var plain = 0f;
    var smoothed = 0f;
    var right = 0u;
    if (label >= 0 && label < ${columns}) {
      let l = u32(label);
      plain = logarithm + (all.most - ${load("logits", `base + l / ${width}u`)}${width === 4 ? "[l % 4u]" : ""});
      smoothed = ${
        smooth
          ? `${float(1 - labelSmoothing)} * plain + ${float(labelSmoothing)} * (logarithm + (all.most - all.sum / ${
            float(columns)
          }))`
          : "plain"
      };
      right = select(0u, 1u, at == l);
    }
    loss[row] = smoothed;
    nll[row] = plain;
    correct[row] = right;
  }
}
`;
      return [{ code, workgroups: layout.workgroups, ...bound([0, 1, 2, 3, 4, 5]) }];
    },
  };
}

/** Columns of a vocabulary that is divided over ranks. */
export interface VocabularyPart {
  /** First column that is here. @default {0} */
  readonly firstColumn?: number;
  /** Columns of all ranks. @default `columns` */
  readonly vocabulary?: number;
}

/**
 * Gradient of `weight · Σ loss` with respect to the logits, in their place: `weight · (p − (1 − s) · one-hot − s /
 * vocabulary)`; rows that are ignored become 0.
 *
 * Operands: logits `[rows, columns]`, updated; labels i32 `[rows]`, logSumExp `[rows]` of the whole vocabulary, weight
 * `[1]`.
 *
 * @throws {RangeError} when a size is not a positive whole number or the smoothing is outside [0, 1)
 */
export function crossEntropyBackward(sizes: CrossEntropySizes & VocabularyPart): Kernel {
  const { rows, columns, labelSmoothing, type = "f32", firstColumn = 0, vocabulary = columns } = sizes;
  checkSizes("crossEntropy.backward", sizes);
  const operands: readonly Operand[] = [
    { name: "logits", type, length: rows * columns, access: "update" },
    { name: "labels", type: "i32", length: rows, access: "read" },
    { name: "logSumExp", type: "f32", length: rows, access: "read" },
    { name: "weight", type: "f32", length: 1, access: "read" },
  ];
  return {
    name: "crossEntropy.backward",
    operands,
    cost: { flops: 4 * rows * columns, bytes: leastBytes(operands) },
    reference: (views) => reference.crossEntropyBackward(sizes, views),
    passes(traits) {
      // By rows though nothing is summed: what a row shares is read once, and no index is divided.
      const layout = layOutRows({ rows, columns, values: 1, once: "written" }, traits);
      const imaged = ["logits"], elements = { logits: "V" };
      const { directives, bindings, load, store, bound } = storage(traits, operands, elements, layout.width, imaged);
      const { open, first } = rowText(layout, { v: load("logits", "base + c") });
      const here = firstColumn === 0 ? "label" : `label - ${firstColumn}`;
      const isLabel = layout.width === 4
        ? `vec4i(${here}) == vec4i(i32(c) * 4) + vec4i(0, 1, 2, 3)`
        : `${here} == i32(c)`;
      const code = `${directives}${vectorPrelude(layout.width)}
${bindings}
${notANumberText}
${open}
  let label = labels[row];
  let valid = label >= 0 && label < ${vocabulary};
  let shift = logSumExp[row];
  let factor = select(weight[0], shift, isNaN(shift));
  ${
        first(
          `let wanted = select(V(), V(${float(1 - labelSmoothing)}), ${isLabel}) + ${
            float(labelSmoothing / vocabulary)
          };
      ${store("logits", "base + c", "select(V(), factor * (exp(v - shift) - wanted), valid)")}`,
        )
      }
}
`;
      return [{ code, workgroups: layout.workgroups, ...bound([0, 1, 2, 3]) }];
    },
  };
}
