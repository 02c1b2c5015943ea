/** Data sets, samplers and loaders. */
export type { Batch, DataPosition, MicroBatch } from "./batch.ts";
export { ignoreIndex, toMicroBatch } from "./batch.ts";
