/**
 * Sums of `float32` by vectors of four, in WebAssembly: JavaScript adds number by number, at 3 to 5 GB/s, which is slower
 * than a socket. Both come to the same bits, so that it does not matter which rank adds how.
 *
 * WebAssembly reaches its own memory only, so what is to be summed quickly lies in such memory (`vectorMemory`). Another
 * thread is handed the `WebAssembly.Memory` in place of its buffer, and finds it again by the buffer (`adopt`).
 */

import { advance, againWhileBelow, get, i32, loop, oneFunction, simd } from "../../std/web_assembly.ts";

/** Numbers that a turn of the loop adds. */
const unroll = 16;
const pageBytes = 65536;

/** Memories by their buffers, of which each thread sees its own. */
const memories = new WeakMap<ArrayBufferLike, WebAssembly.Memory>();
let made = 0;
/** Each sets gigabytes of addresses aside: a process that simulates many ranks must not run out of them. */
const mostMemories = 64;

/** Shared memory of at least so many bytes, on which sums are quick where there can be such. */
export function vectorMemory(bytes: number): SharedArrayBuffer {
  const pages = Math.max(1, Math.ceil(bytes / pageBytes));
  if (made < mostMemories && pages <= pageBytes) {
    try {
      const memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
      made++;
      return adopt(memory);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error; // no addresses are left
    }
  }
  return new SharedArrayBuffer(bytes);
}

/** The buffer of a memory, which sums know from then on. */
export function adopt(memory: WebAssembly.Memory): SharedArrayBuffer {
  const buffer = memory.buffer as unknown as SharedArrayBuffer;
  memories.set(buffer, memory);
  return buffer;
}

/** What another thread is to be handed of this buffer, for `adopt`; nothing where sums on it are not quick. */
export const memoryOf = (buffer: ArrayBufferLike): WebAssembly.Memory | undefined => memories.get(buffer);

type Add = (sum: number, term: number, end: number) => void;
let compiled: WebAssembly.Module | undefined;
const instances = new WeakMap<WebAssembly.Memory, WeakMap<WebAssembly.Memory, Add>>();

function instanceFor(sum: WebAssembly.Memory, term: WebAssembly.Memory): Add {
  const ofSum = instances.get(sum) ?? new WeakMap<WebAssembly.Memory, Add>();
  instances.set(sum, ofSum);
  const known = ofSum.get(term);
  if (known) return known;
  compiled ??= new WebAssembly.Module(vectorSumModule());
  const add = new WebAssembly.Instance(compiled, { memory: { sum, term } }).exports.add as Add;
  ofSum.set(term, add);
  return add;
}

/**
 * `sum[i] += term[i]` for the first numbers, as many as vectors hold.
 *
 * @returns how many were added: none where either lies in other memory
 *
 * @example
 * ```ts
 * import { addVectors, vectorMemory } from "./vector_sum.ts";
 * const sum = new Float32Array(vectorMemory(80), 0, 20).fill(1), term = new Float32Array(vectorMemory(80), 0, 20).fill(2);
 * const added = addVectors(sum, term);
 * console.assert(sum.every((value, i) => value === (i < added ? 3 : 1)));
 * ```
 */
export function addVectors(sum: Float32Array, term: Float32Array): number {
  const added = term.length - term.length % unroll;
  if (added === 0) return 0;
  const own = memories.get(sum.buffer), other = memories.get(term.buffer);
  if (!own || !other) return 0;
  instanceFor(own, other)(sum.byteOffset, term.byteOffset, sum.byteOffset + 4 * added);
  return added;
}

/**
 * The module, with two memories:
 *
 * ```text
 * (func (export "add") (param $sum i32) (param $term i32) (param $end i32)
 *   (loop
 *     ;; four times, at offsets 0, 16, 32 and 48
 *     (v128.store (local.get $sum)
 *       (f32x4.add (v128.load (local.get $sum)) (v128.load $memory_of_term (local.get $term))))
 *     (local.set $sum (i32.add (local.get $sum) (i32.const 64)))
 *     (local.set $term (i32.add (local.get $term) (i32.const 64)))
 *     (br_if 0 (i32.lt_u (local.get $sum) (local.get $end)))))
 * ```
 */
export function vectorSumModule(): Uint8Array<ArrayBuffer> {
  const [sum, term, end] = [0, 1, 2];
  // An alignment of 2 to the 2 bytes; with bit 6 the number of the memory follows.
  const loadSum = (offset: number) => [...get(sum!), ...simd(0x00, 2, offset)];
  const loadTerm = (offset: number) => [...get(term!), ...simd(0x00, 2 | 64, 1, offset)];
  const store = (offset: number) => simd(0x0b, 2, offset);
  const add = simd(0xe4);
  const turn = [0, 16, 32, 48].map((offset) => [
    ...get(sum!),
    ...loadSum(offset),
    ...loadTerm(offset),
    ...add,
    ...store(offset),
  ]);
  const shared = [3, 0, pageBytes]; // of at most all pages
  return oneFunction({
    name: "add",
    memories: [{ name: "sum", limits: shared }, { name: "term", limits: shared }],
    parameters: [i32, i32, i32],
    body: loop(...turn, advance(sum!, 4 * unroll), advance(term!, 4 * unroll), againWhileBelow(sum!, end!)),
  });
}
