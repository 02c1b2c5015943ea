/** Fills a program's inputs from micro-batches. */
import { groupTokens } from "../../kernels/embedding/mod.ts";
import { dynamicNtkBase, rotaryTables } from "../../kernels/rope/mod.ts";
import type { ResolvedConfig } from "../config/mod.ts";
import { ignoreIndex, type MicroBatch } from "../data/mod.ts";
import { groupedInput } from "../graph/operators.ts";
import type { SegmentName } from "../graph/plan.ts";
import type { Model } from "./model.ts";

/** Labels of a micro-batch that count. */
export function countLabels(labels: Int32Array): number {
  let count = 0;
  for (const label of labels) if (label >= 0) count++;
  return count;
}

/** @throws {RangeError} for a token id outside the vocabulary */
export function checkTokens(
  { model: { vocab_size } }: Pick<ResolvedConfig, "model">,
  { inputIds, labels }: Pick<MicroBatch, "inputIds" | "labels">,
): void {
  for (const ids of [inputIds, labels]) {
    for (const id of ids) {
      if (id >= vocab_size) {
        throw new RangeError(
          `Cannot train on token id ${id}: model.vocab_size is ${vocab_size}; was the data made with another tokenizer?`,
        );
      }
    }
  }
}

/** One without labels: nothing flows back from it. */
export function silentMicroBatch(tokens: number): MicroBatch {
  return {
    inputIds: new Uint32Array(tokens),
    labels: new Int32Array(tokens).fill(ignoreIndex),
    positions: Uint32Array.from({ length: tokens }, (_, token) => token),
    segmentStart: new Uint32Array(tokens),
    segmentEnd: new Uint32Array(tokens).fill(tokens),
    typeIds: new Uint32Array(tokens),
    segments: 1,
    longestSegment: tokens,
  };
}

export interface FeedOptions {
  /** Factor of every row's gradient: 1 / (labels that count × micro-batches), times the loss scale. */
  readonly lossWeight: number;
  /** Factor of the gradients of losses that are one number a micro-batch: the loss scale / micro-batches. @default {0} */
  readonly auxiliaryWeight?: number;
  /** Step and micro-batch of it that key dropout. */
  readonly step: number;
  /** @default {0} */
  readonly microBatch?: number;
  readonly frame?: number;
}

/** @throws {RangeError} for a token id outside the vocabulary, before anything is computed. */
export function feed(
  { program, family, config, inputs }: Model,
  segment: SegmentName,
  data: MicroBatch,
  { lossWeight, auxiliaryWeight = 0, step, microBatch = 0, frame = 0 }: FeedOptions,
): void {
  if (!segment.startsWith("backward")) checkTokens(config, data);
  const rotary = () => {
    const { headDim, beyond, base: least } = family.dynamicRotary!(config.model)!, length = data.inputIds.length;
    const longest = data.longestSegment;
    const base = dynamicNtkBase({ base: least, headDim, length: longest, maxPositions: beyond, factor: 1 });
    return rotaryTables({ headDim, base, length });
  };
  const sources: Readonly<Record<string, () => Uint32Array | Int32Array | Float32Array>> = {
    ids: () => data.inputIds,
    labels: () => data.labels,
    positions: () => data.positions,
    start: () => data.segmentStart,
    end: () => data.segmentEnd,
    lossWeight: () => new Float32Array([lossWeight]),
    auxiliaryWeight: () => new Float32Array([auxiliaryWeight * config.loss.moe_loss_coeff]),
    // An odd factor keeps steps apart, so that masks differ between the micro-batches of a step as between steps.
    dropoutCounter: () => new Uint32Array([config.runtime.seed, Math.imul(step, 0x9e3779b1) + microBatch]),
    rotaryCosine: () => rotary().cosine,
    rotarySine: () => rotary().sine,
  };
  /** An input, or this rank's part of it; nothing for what another rank hands over. */
  const valuesOf = (name: string) => {
    const part = inputs.get(name), values = sources[part?.of ?? name]?.();
    return part ? values?.subarray(part.first, part.first + part.count) : values;
  };
  for (const name of program.plan.segments[segment].inputs.keys()) {
    const ids = groupedInput(name), values = valuesOf(ids ?? name);
    if (ids === undefined) {
      if (values) program.upload(segment, name, values, frame);
    } else if (values instanceof Uint32Array) program.upload(segment, name, groupTokens(values), frame);
    else throw new TypeError(`Cannot look rows up by ${ids}: ids and positions are what the host has by token`);
  }
}
