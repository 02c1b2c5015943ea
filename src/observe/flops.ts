/** Floating-point work of a training step by Megatron's formula. */

export interface MegatronFlopsOptions {
  /** Wall time of the step. */
  readonly secondsPerStep: number;
  /** Recomputation: the fraction of layers, or whether any. @default {false} */
  readonly checkpoint?: boolean | number;
  /** @default {2048} */
  readonly seqLen?: number;
  /** @default {12} */
  readonly hiddenSize?: number;
  /** @default {32} */
  readonly numLayers?: number;
  /** @default {12} */
  readonly vocabSize?: number;
  /** Sequences of the whole step, of all data-parallel ranks together. @default {4} */
  readonly globalBatchSize?: number;
  /** Devices that share the work. @default {1} */
  readonly worldSize?: number;
  /** @default {4} */
  readonly mlpRatio?: number;
  /** @default {true} */
  readonly useSwiglu?: boolean;
}

/**
 * TFLOP/s of each device. No correction for grouped queries, experts or the half of the attention that is masked: the
 * figure is comparable with InternEvo's, not with a profiler's.
 *
 * @example
 * ```ts
 * import { getMegatronFlops } from "./flops.ts";
 * const options = { checkpoint: false, seqLen: 2048, hiddenSize: 4096, numLayers: 32, vocabSize: 103168 };
 * const tflops = getMegatronFlops({ ...options, secondsPerStep: 2.5, globalBatchSize: 64, worldSize: 8, mlpRatio: 8 / 3 });
 * console.assert(Math.round(tflops) === 291);
 * ```
 */
export function getMegatronFlops(options: MegatronFlopsOptions): number {
  const { seqLen = 2048, hiddenSize = 12, numLayers = 32, vocabSize = 12, globalBatchSize = 4 } = options;
  const { secondsPerStep, checkpoint = false, worldSize = 1, mlpRatio = 4, useSwiglu = true } = options;
  const passes = Number(checkpoint) > 0 ? 4 : 3; // forward, twice that for backward, one more forward if recomputed
  const ratio = useSwiglu ? mlpRatio * 3 / 2 : mlpRatio; // three matrices instead of two
  const tokens = globalBatchSize * seqLen;
  const flops = passes * (8 + 4 * ratio) * tokens * hiddenSize ** 2 * numLayers +
    passes * 4 * tokens * seqLen * hiddenSize * numLayers +
    6 * tokens * hiddenSize * vocabSize;
  return flops / (secondsPerStep * worldSize * 1e12);
}
