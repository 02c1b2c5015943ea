/**
 * Random streams keyed by name. A parameter's full initial tensor depends on the run's seed and the parameter's name
 * alone, so every layout of ranks starts from the same model.
 */
import type { Initialization } from "../graph/graph.ts";

/** xoshiro128** (Blackman and Vigna 2018), seeded from text through splitmix-like mixing of an FNV-1a hash. */
export function namedStream(seed: number, name: string): () => number {
  let hash = 0x811c9dc5 ^ seed;
  for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193);
  const state = new Uint32Array(4);
  for (let i = 0; i < 4; i++) {
    hash = (hash + 0x9e3779b9) | 0;
    let mixed = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
    mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
    state[i] = mixed ^ (mixed >>> 16);
  }
  const rotate = (x: number, k: number) => (x << k) | (x >>> (32 - k));
  return () => {
    const result = Math.imul(rotate(Math.imul(state[1]!, 5), 7), 9) >>> 0;
    const shifted = state[1]! << 9;
    state[2]! ^= state[0]!;
    state[3]! ^= state[1]!;
    state[1]! ^= state[2]!;
    state[0]! ^= state[3]!;
    state[2]! ^= shifted;
    state[3] = rotate(state[3]!, 11);
    return result;
  };
}

/** Draws a parameter's full initial tensor of `length` elements. */
export function initialTensor(
  initialization: Initialization,
  { seed, name, length }: { seed: number; name: string; length: number },
): Float32Array<ArrayBuffer> {
  const values = new Float32Array(length);
  if (initialization.kind === "constant") return values.fill(initialization.value);
  const next = namedStream(seed, name);
  const unit = () => (next() + 0.5) / 2 ** 32; // in (0, 1)
  if (initialization.kind === "uniform") {
    for (let i = 0; i < length; i++) values[i] = (2 * unit() - 1) * initialization.bound;
    return values;
  }
  for (let i = 0; i < length; i += 2) { // Box and Muller 1958
    const radius = initialization.std * Math.sqrt(-2 * Math.log(unit())), angle = 2 * Math.PI * unit();
    values[i] = radius * Math.cos(angle);
    if (i + 1 < length) values[i + 1] = radius * Math.sin(angle);
  }
  return values;
}
