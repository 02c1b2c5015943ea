/** What tests on InternEvo's reference models share. */
import { relative } from "node:path";
import { TensorFile } from "../src/checkpoint/mod.ts";
import type { WeightSource } from "../src/train/weights.ts";
import { goldenPath, readGoldenJson } from "./golden_dir.ts";

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

/** The training files in the order in which the reference's file system listed them: it is not that of the names. */
export function listedFiles(): string[] {
  const { folder } = readGoldenJson<{ folder: { result?: { datasets: { file: string }[] } }[] }>(
    "internevo",
    "packed_dataset.json",
  );
  const lists = folder.flatMap(({ result }) => result ? [result.datasets.map(({ file }) => file)] : []);
  return lists.sort((a, b) => b.length - a.length)[0].map((file) => relative("train", file));
}
