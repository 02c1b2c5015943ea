/** Fills a program's inputs from micro-batches. */
import { dynamicNtkBase, rotaryTables } from "../../kernels/rope/mod.ts";
import type { MicroBatch } from "../data/mod.ts";
import type { Model } from "./model.ts";

/** Labels of a micro-batch that count. */
export function countLabels(labels: Int32Array): number {
  let count = 0;
  for (const label of labels) if (label >= 0) count++;
  return count;
}

export interface FeedOptions {
  /** Factor of every row's gradient: 1 / (labels that count × micro-batches), times the loss scale. */
  readonly lossWeight: number;
  /** Step that keys dropout. */
  readonly step: number;
  readonly frame?: number;
}

/** @throws {RangeError} for a token id outside the vocabulary, before anything is computed. */
export function feed(
  { program, family, config }: Model,
  segment: "forward" | "evaluate",
  microBatch: MicroBatch,
  { lossWeight, step, frame = 0 }: FeedOptions,
): void {
  const vocabulary = config.model.vocab_size;
  for (const ids of [microBatch.inputIds, microBatch.labels]) {
    for (const id of ids) {
      if (id >= vocabulary) {
        throw new RangeError(
          `Cannot train on token id ${id}: model.vocab_size is ${vocabulary}; was the data made with another tokenizer?`,
        );
      }
    }
  }
  const upload = (name: string, data: ArrayBufferView) => program.upload(segment, name, data, frame);
  upload("ids", microBatch.inputIds);
  upload("labels", microBatch.labels);
  upload("positions", microBatch.positions);
  upload("start", microBatch.segmentStart);
  upload("end", microBatch.segmentEnd);
  upload("lossWeight", new Float32Array([lossWeight]));
  const { inputs } = program.plan.segments[segment];
  if (inputs.has("dropoutCounter")) upload("dropoutCounter", new Uint32Array([config.runtime.seed, step]));
  const rotary = family.dynamicRotary?.(config.model);
  if (rotary && inputs.has("rotaryCosine")) {
    const { headDim, beyond } = rotary, length = microBatch.inputIds.length;
    const longest = microBatch.longestSegment;
    const base = dynamicNtkBase({ base: rotary.base, headDim, length: longest, maxPositions: beyond, factor: 1 });
    const { cosine, sine } = rotaryTables({ headDim, base, length });
    upload("rotaryCosine", cosine);
    upload("rotarySine", sine);
  }
}
