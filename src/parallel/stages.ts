/** Which layers a pipeline stage holds. */

/** Layers `first` up to, not including, `end`. */
export interface LayerRange {
  readonly first: number;
  readonly end: number;
}

/**
 * Deals layers out evenly: each chunk is a run of `layers / chunks` layers, divided over the stages in order; where that
 * does not divide, the last stages hold one layer more (the first one already has the embedding).
 *
 * @returns one list per stage, holding one range per chunk
 * @throws {RangeError} when chunks do not divide the layers, or a stage would hold none
 *
 * @example
 * ```ts
 * import { partitionLayers } from "./stages.ts";
 * const stages = partitionLayers(10, { stages: 4 });
 * console.assert(stages.map(([range]) => `${range!.first}-${range!.end}`).join() === "0-2,2-4,4-7,7-10");
 * ```
 */
export function partitionLayers(
  layers: number,
  { stages, chunks = 1 }: { stages: number; chunks?: number },
): LayerRange[][] {
  if (layers % chunks !== 0) {
    throw new RangeError(`Cannot divide ${layers} layers into ${chunks} chunks: ${layers} is no multiple of ${chunks}`);
  }
  const perChunk = layers / chunks, least = Math.floor(perChunk / stages), plain = stages - perChunk % stages;
  if (least === 0) {
    throw new RangeError(
      `Cannot divide ${layers} layers over ${stages} stages of ${chunks} chunks: ` +
        `each holds a layer, which takes ${stages * chunks}`,
    );
  }
  const start = (stage: number) => stage * least + Math.max(0, stage - plain);
  return Array.from(
    { length: stages },
    (_, stage) =>
      Array.from({ length: chunks }, (_, chunk) => ({
        first: chunk * perChunk + start(stage),
        end: chunk * perChunk + start(stage + 1),
      })),
  );
}
