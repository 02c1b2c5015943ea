/**
 * Softmax cross entropy over a vocabulary whose columns are divided evenly over ranks. Each rank reads its logits once and
 * tells five numbers of each row; whoever has those of all ranks has the loss. What travels is `5 · rows` numbers a rank,
 * in one exchange, instead of logits (or of one all-reduce each for maximum, sum and label).
 */
import { type Kernel, leastBytes, type Operand } from "../kernel.ts";
import { float, itemText, layOutRows, requireSizes, rowText, vectorPrelude } from "../norm/rows.ts";
import { subgroupPrelude } from "../matmul/dialect.ts";
import { storage, type Stored } from "../storage.ts";
import { joinText, notANumberText, nothingYet, onlineText, takeIn } from "./online.ts";
import * as reference from "./reference.ts";

/** Numbers that a rank tells of each row. */
export const statisticsPerRow = 5;
/** Up to here every whole number is an `f32`, as which places in the vocabulary travel. */
const largestVocabulary = 2 ** 24;

export interface StatisticsSizes extends Stored {
  readonly rows: number;
  /** Columns that are here. */
  readonly columns: number;
  /** Place in the vocabulary of the first of them. */
  readonly firstColumn: number;
  /** Joins what `statistics` holds already, of columns before these. @default {false} */
  readonly joins?: boolean;
}

/**
 * Of each row: its largest logit, the place in the vocabulary of the first such, the sum of exponentials of differences to
 * it, the sum of the logits, and the label's logit, 0 where the label is not here.
 *
 * Operands: logits `[rows, columns]`, labels i32 `[rows]` → statistics `f32` `[rows, 5]`, updated where it joins.
 *
 * @throws {RangeError} when a size is not a positive whole number, or places pass 2²⁴
 */
export function crossEntropyStatistics(sizes: StatisticsSizes): Kernel {
  const { rows, columns, firstColumn, joins = false, type = "f32" } = sizes;
  requireSizes("crossEntropy.statistics", { rows, columns });
  if (firstColumn + columns > largestVocabulary) {
    throw new RangeError(`Cannot make crossEntropy.statistics: column ${firstColumn + columns} is past 2^24`);
  }
  const operands: readonly Operand[] = [
    { name: "logits", type, length: rows * columns, access: "read" },
    { name: "labels", type: "i32", length: rows, access: "read" },
    { name: "statistics", type: "f32", length: rows * statisticsPerRow, access: joins ? "update" : "write" },
  ];
  return {
    name: "crossEntropy.statistics",
    operands,
    cost: { flops: 4 * rows * columns, bytes: leastBytes(operands) },
    reference: (views) => reference.crossEntropyStatistics(sizes, views),
    passes(traits) {
      const layout = layOutRows({ rows, columns, values: 1, once: "read" }, traits), { width } = layout;
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
    let own = row * ${statisticsPerRow}u;
    var whole = all;
    var place = at + ${firstColumn}u;
    let label = labels[row] - ${firstColumn};
    var wanted = 0f;
    if (label >= 0 && label < ${columns}) {
      let l = u32(label);
      wanted = ${load("logits", `base + l / ${width}u`)}${width === 4 ? "[l % 4u]" : ""};
    }
    ${
        joins
          ? `let before = Online(statistics[own], 0u, statistics[own + 2u], statistics[own + 3u]);
    place = select(place, u32(statistics[own + 1u]), before.most >= all.most);
    whole = joined(before, all);
    wanted += statistics[own + 4u];`
          : ""
      }
    statistics[own] = whole.most;
    statistics[own + 1u] = f32(place);
    statistics[own + 2u] = whole.exponentials;
    statistics[own + 3u] = whole.sum;
    statistics[own + 4u] = wanted;
  }
}
`;
      return [{ code, workgroups: layout.workgroups, ...bound([0, 1, 2]) }];
    },
  };
}

export interface MergeSizes {
  readonly rows: number;
  /** Ranks. */
  readonly parts: number;
  /** Columns of all ranks; a multiple of `parts`. */
  readonly vocabulary: number;
  readonly labelSmoothing: number;
}

/**
 * The results of cross entropy from all ranks' statistics, merged in the order of the ranks.
 *
 * Operands: statistics `[parts, rows, 5]`, labels i32 `[rows]` → loss, nll, logSumExp `[rows]`, correct u32 `[rows]`, as
 * of `crossEntropyForward`.
 *
 * @throws {RangeError} when a size is not a positive whole number or the vocabulary is no multiple of the parts
 */
export function crossEntropyMerge(sizes: MergeSizes): Kernel {
  const { rows, parts, vocabulary, labelSmoothing } = sizes;
  requireSizes("crossEntropy.merge", { rows, parts, vocabulary, columns: vocabulary / parts });
  const operands: readonly Operand[] = [
    { name: "statistics", type: "f32", length: parts * rows * statisticsPerRow, access: "read" },
    { name: "labels", type: "i32", length: rows, access: "read" },
    { name: "loss", type: "f32", length: rows, access: "write" },
    { name: "nll", type: "f32", length: rows, access: "write" },
    { name: "logSumExp", type: "f32", length: rows, access: "write" },
    { name: "correct", type: "u32", length: rows, access: "write" },
  ];
  const smooth = labelSmoothing > 0;
  return {
    name: "crossEntropy.merge",
    operands,
    cost: { flops: 6 * parts * rows, bytes: leastBytes(operands) },
    reference: (views) => reference.crossEntropyMerge(sizes, views),
    passes(traits) {
      const { open, workgroups } = itemText(rows);
      const code = `${storage(traits, operands).bindings}
${notANumberText}
${open}
  let label = labels[i];
  let valid = label >= 0 && label < ${vocabulary};
  let owner = select(0u, u32(label) / ${vocabulary / parts}u, valid);
  var most = statistics[i * ${statisticsPerRow}u];
  var best = statistics[i * ${statisticsPerRow}u + 1u];
  for (var part = 1u; part < ${parts}u; part += 1u) {
    let at = (part * ${rows}u + i) * ${statisticsPerRow}u;
    if (statistics[at] > most) {
      most = statistics[at];
      best = statistics[at + 1u];
    }
  }
  var exponentials = 0f;
  var sum = 0f;
  for (var part = 0u; part < ${parts}u; part += 1u) {
    let at = (part * ${rows}u + i) * ${statisticsPerRow}u;
    exponentials += statistics[at + 2u] * exp(statistics[at] - most);
    sum += statistics[at + 3u];
  }
  let wanted = statistics[(owner * ${rows}u + i) * ${statisticsPerRow}u + 4u];
  let exact = log(exponentials);
  let logarithm = select(exact, notANumber(exact), hasNoLoss(most, sum));
  let plain = select(0f, logarithm + (most - wanted), valid);
  loss[i] = ${
        smooth
          ? `select(0f, ${float(1 - labelSmoothing)} * plain + ${float(labelSmoothing)} * (logarithm + (most - sum / ${
            float(vocabulary)
          })), valid)`
          : "plain"
      };
  nll[i] = plain;
  logSumExp[i] = most + logarithm;
  correct[i] = select(0u, 1u, valid && best == f32(label));
}
`;
      return [{ code, workgroups, operands: [0, 1, 2, 3, 4, 5] }];
    },
  };
}
