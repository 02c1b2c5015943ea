/** Fills a program's inputs from micro-batches. */
import { dynamicNtkBase, rotaryTables } from "../../kernels/rope/mod.ts";
import type { ResolvedConfig } from "../config/mod.ts";
import type { MicroBatch } from "../data/mod.ts";
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

export interface FeedOptions {
  /** Factor of every row's gradient: 1 / (labels that count × micro-batches), times the loss scale. */
  readonly lossWeight: number;
  /** Step and micro-batch of it that key dropout. */
  readonly step: number;
  /** @default {0} */
  readonly microBatch?: number;
  readonly frame?: number;
}

/** @throws {RangeError} for a token id outside the vocabulary, before anything is computed. */
export function feed(
  { program, family, config }: Model,
  segment: SegmentName,
  data: MicroBatch,
  { lossWeight, step, microBatch = 0, frame = 0 }: FeedOptions,
): void {
  checkTokens(config, data);
  const { inputs } = program.plan.segments[segment];
  /** A stage of a pipeline reads some of them only. */
  const upload = (name: string, values: ArrayBufferView) => {
    if (inputs.has(name)) program.upload(segment, name, values, frame);
  };
  upload("ids", data.inputIds);
  upload("labels", data.labels);
  upload("positions", data.positions);
  upload("start", data.segmentStart);
  upload("end", data.segmentEnd);
  upload("lossWeight", new Float32Array([lossWeight]));
  if (inputs.has("dropoutCounter")) {
    // An odd factor keeps steps apart, so that masks differ between the micro-batches of a step as between steps.
    upload("dropoutCounter", new Uint32Array([config.runtime.seed, Math.imul(step, 0x9e3779b1) + microBatch]));
  }
  const rotary = family.dynamicRotary?.(config.model);
  if (rotary && inputs.has("rotaryCosine")) {
    const { headDim, beyond } = rotary, length = data.inputIds.length;
    const longest = data.longestSegment;
    const base = dynamicNtkBase({ base: rotary.base, headDim, length: longest, maxPositions: beyond, factor: 1 });
    const { cosine, sine } = rotaryTables({ headDim, base, length });
    upload("rotaryCosine", cosine);
    upload("rotarySine", sine);
  }
}
