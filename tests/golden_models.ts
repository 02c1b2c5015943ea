/** What tests on InternEvo's reference models share. */
import { TensorFile } from "../src/checkpoint/mod.ts";
import type { WeightSource } from "../src/train/weights.ts";
import { goldenPath } from "./golden_dir.ts";

/** Defaults of version 0.3.4, of which the data is, that later versions changed. */
export const earlierDefaults: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  INTERNLM2_PUBLIC: { adapt_hf: true },
  LLAMA2: { adapt_hf: false },
};

/** Reference weights in InternEvo's names, out of one safetensors file. */
export interface GoldenWeights extends WeightSource, Disposable {
  has(name: string): boolean;
  readFloat32(name: string): Float32Array<ArrayBuffer>;
}

/** The tensors of `internevo/{file}` whose names begin with `prefix`, under the rest of their names. */
export function goldenWeights(file: string, prefix = ""): GoldenWeights {
  const tensors = TensorFile.open(goldenPath("internevo", file));
  return {
    names: [...tensors.tensors.keys()].filter((name) => name.startsWith(prefix)).map((name) =>
      name.slice(prefix.length)
    ),
    has: (name) => tensors.tensors.has(prefix + name),
    expectTensor: (name, shape) => tensors.expectTensor(prefix + name, shape),
    readFloat32: (name) => tensors.readFloat32(prefix + name) as Float32Array<ArrayBuffer>,
    [Symbol.dispose]: () => tensors[Symbol.dispose](),
  };
}
