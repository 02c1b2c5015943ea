/**
 * Random streams keyed by name. A parameter's full initial tensor depends on the run's seed and the parameter's name
 * alone, so every layout of ranks starts from the same model.
 */
import type { Initialization } from "../graph/graph.ts";
import { fillNormal, fillUniform, normalPair, type RandomState, uniformValue } from "./vector_random.ts";

/** The state of a stream: seeded from text through splitmix-like mixing of an FNV-1a hash. */
function seeded(seed: number, name: string): RandomState {
  let hash = 0x811c9dc5 ^ seed;
  for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193);
  const state = new Uint32Array(4);
  for (let i = 0; i < 4; i++) {
    hash = (hash + 0x9e3779b9) | 0;
    let mixed = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
    mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
    state[i] = mixed ^ (mixed >>> 16);
  }
  return state;
}

const rotate = (x: number, k: number) => (x << k) | (x >>> (32 - k));

/** Words of xoshiro128** (Blackman and Vigna 2018), which move the state on. */
const wordsOf = (state: RandomState) => (): number => {
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

/** The words of the stream of a name. */
export const namedStream = (seed: number, name: string): () => number => wordsOf(seeded(seed, name));

/** Draws a parameter's full initial tensor of `length` elements. */
export function initialTensor(
  initialization: Initialization,
  { seed, name, length }: { seed: number; name: string; length: number },
): Float32Array<ArrayBuffer> {
  const values = new Float32Array(length);
  if (initialization.kind === "constant") return values.fill(initialization.value);
  const state = seeded(seed, name), next = wordsOf(state);
  if (initialization.kind === "uniform") {
    const { bound } = initialization;
    for (let i = fillUniform(values, state, bound); i < length; i++) values[i] = uniformValue(bound, next());
    return values;
  }
  const { std } = initialization;
  for (let i = fillNormal(values, state, std); i < length; i += 2) {
    const [first, second] = normalPair(std, next(), next());
    values[i] = first;
    if (i + 1 < length) values[i + 1] = second;
  }
  return values;
}
