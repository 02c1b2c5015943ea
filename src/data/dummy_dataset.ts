/** The built-in data set for runs without data: counting patterns, the same on every machine. */
import { RandomState } from "./mt19937.ts";
import type { SampleSource } from "./token_file.ts";

export interface DummyOptions {
  readonly samples: number;
  /** Longest sample, S. */
  readonly seqLen: number;
  /** Repeat each pattern until it fills S. @default {true} */
  readonly fixedSeqLen?: boolean;
}

/**
 * Sample i is [n, r, 0, 1 … n−1 repeated r times], cut to S, with n from 1 to 29 and r from 10 to 199; with `fixedSeqLen`
 * r doubles until the pattern fills S. All samples have type 0.
 */
export function dummyDataset(options: DummyOptions): SampleSource {
  const { samples, seqLen, fixedSeqLen = true } = options;
  const random = new RandomState(1999);
  const moduli = random.randint(1, 30, samples);
  const repeats = random.randint(10, 200, samples);
  const lengths = new Uint32Array(samples);
  for (let i = 0; i < samples; i++) {
    if (fixedSeqLen) { while (moduli[i] * repeats[i] < seqLen) repeats[i] *= 2; }
    lengths[i] = Math.min(seqLen, 2 + moduli[i] * repeats[i]);
  }
  return {
    path: "dummy_path/dummy_lang/dummy_ds/train.bin",
    lengths,
    totalTokens: lengths.reduce((sum, length) => sum + length, 0),
    read(index) {
      const sample = new Int32Array(lengths[index]);
      for (let k = 2; k < sample.length; k++) sample[k] = (k - 2) % moduli[index];
      if (sample.length > 0) sample[0] = moduli[index];
      if (sample.length > 1) sample[1] = repeats[index];
      return sample;
    },
  };
}
