/**
 * NumPy's legacy `RandomState`, bit for bit, as far as data sets need it: orders and dummy samples must be those that
 * other trainers draw from the same seed. MT19937 after Matsumoto and Nishimura (1998); integers below a bound by
 * masked rejection of 32-bit draws; shuffles by Fisher–Yates from the last index downward.
 */

const size = 624;
const shift = 397;

/** The generator's whole state: 624 words and the place of the next draw among them. */
export interface RandomStateSnapshot {
  readonly key: Uint32Array;
  readonly pos: number;
}

/**
 * @example
 * ```ts
 * import { RandomState } from "./mt19937.ts";
 * const order = new RandomState(1024).permutation(10);
 * console.assert(order.join() === "2,3,7,0,6,8,5,4,9,1");
 * ```
 */
export class RandomState {
  #key = new Uint32Array(size);
  #pos = size;

  /** Throws `RangeError` unless `seed` is an integer in [0, 2³²). */
  constructor(seed: number) {
    if (!Number.isInteger(seed) || seed < 0 || seed > 0xffffffff) {
      throw new RangeError(`A random seed must be an integer from 0 to 4294967295; got ${seed}`);
    }
    const key = this.#key;
    key[0] = seed;
    for (let i = 1; i < size; i++) {
      key[i] = Math.imul(1812433253, key[i - 1] ^ (key[i - 1] >>> 30)) + i;
    }
  }

  save(): RandomStateSnapshot {
    return { key: this.#key.slice(), pos: this.#pos };
  }

  restore(snapshot: RandomStateSnapshot): void {
    if (snapshot.key.length !== size || !(snapshot.pos >= 0 && snapshot.pos <= size)) {
      throw new RangeError(
        `A random state has ${size} words and a position up to ${size}; got ${snapshot.key.length} and ${snapshot.pos}`,
      );
    }
    this.#key.set(snapshot.key);
    this.#pos = snapshot.pos;
  }

  #refill(): void {
    const key = this.#key;
    const mix = (i: number, next: number, far: number) => {
      const y = (key[i] & 0x80000000) | (key[next] & 0x7fffffff);
      key[i] = key[far] ^ (y >>> 1) ^ (-(y & 1) & 0x9908b0df);
    };
    for (let i = 0; i < size - shift; i++) mix(i, i + 1, i + shift);
    for (let i = size - shift; i < size - 1; i++) mix(i, i + 1, i + shift - size);
    mix(size - 1, 0, shift - 1);
    this.#pos = 0;
  }

  randomUint32(): number {
    if (this.#pos === size) this.#refill();
    let y = this.#key[this.#pos++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    y ^= y >>> 18;
    return y >>> 0;
  }

  /** Uniform in [0, 1) with 53 random bits. */
  randomSample(): number {
    const high = this.randomUint32() >>> 5;
    const low = this.randomUint32() >>> 6;
    return (high * 67108864 + low) / 9007199254740992;
  }

  /** Uniform integer in [0, max]; draws nothing for 0. `max` below 2³². */
  randomInterval(max: number): number {
    if (!(max >= 0 && max <= 0xffffffff)) throw new RangeError(`A bound must be in [0, 2^32); got ${max}`);
    if (max === 0) return 0;
    const mask = 0xffffffff >>> Math.clz32(max);
    let value: number;
    do value = (this.randomUint32() & mask) >>> 0; while (value > max);
    return value;
  }

  /** `count` integers in [low, high). */
  randint(low: number, high: number, count: number): Int32Array<ArrayBuffer> {
    if (!(high > low)) throw new RangeError(`randint needs low < high; got ${low} and ${high}`);
    const values = new Int32Array(count);
    for (let i = 0; i < count; i++) values[i] = low + this.randomInterval(high - 1 - low);
    return values;
  }

  /** Shuffles in place. The draws are those of `randomInterval`, here in one loop: sets have tens of millions of samples. */
  shuffle<T extends Uint32Array | Int32Array | number[]>(values: T): T {
    const key = this.#key;
    let pos = this.#pos, mask = 0;
    for (let i = values.length - 1; i > 0; i--) {
      if (mask >>> 1 >= i || mask === 0) mask = 0xffffffff >>> Math.clz32(i);
      let j: number;
      do {
        if (pos === size) {
          this.#refill();
          pos = 0;
        }
        let y = key[pos++];
        y ^= y >>> 11;
        y ^= (y << 7) & 0x9d2c5680;
        y ^= (y << 15) & 0xefc60000;
        j = ((y ^ (y >>> 18)) & mask) >>> 0;
      } while (j > i);
      const held = values[i];
      values[i] = values[j];
      values[j] = held;
    }
    this.#pos = pos;
    return values;
  }

  /** A shuffled 0…count−1. */
  permutation(count: number): Uint32Array<ArrayBuffer> {
    const values = new Uint32Array(count);
    for (let i = 0; i < count; i++) values[i] = i;
    return this.shuffle(values);
  }
}
