/**
 * Initial values by vectors, in WebAssembly: a parameter's stream of random words becomes numbers about five times as
 * quickly as in JavaScript, and they are the same to the last bit.
 *
 * Numbers of a normal distribution need a logarithm, a sine and a cosine, of which every implementation is off by another
 * last bit of a double. They are computed here to within a bound, and stored where everything within it rounds to the same
 * `float32`. The others, one in some million, are left to JavaScript, whose results therefore decide.
 */

import {
  advance,
  againWhileBelow,
  get,
  i32,
  loop,
  section,
  set as setLocal,
  signed,
  simd,
  text,
  unsigned,
  v128,
  vector,
} from "../std/web_assembly.ts";

/** xoshiro128**, its state: four words. */
export type RandomState = Uint32Array<ArrayBuffer>;

/** Values of one call. */
const blockLength = 1 << 15;
/** Where in memory: the state, the values, the vectors in doubt (four words, the place of their values, padding). */
const stateAt = 0, valuesAt = 64, doubtAt = valuesAt + 4 * blockLength, doubtBytes = 32;
const memoryBytes = doubtAt + doubtBytes * blockLength / 4;

/**
 * How far a value may be off, relative to the radius it is a part of. The angle is rounded twice before its sine and cosine
 * are taken (2^-50 at most, together), which are off by a last bit here and there (2^-52), as is the radius (2^-51).
 */
const doubt = 4e-15;

/** In (0, 1). */
const unit = (word: number): number => (word + 0.5) / 2 ** 32;

/** Two independent numbers of a normal distribution from two random words (Box and Muller 1958). */
export function normalPair(std: number, first: number, second: number): [number, number] {
  const radius = std * Math.sqrt(-2 * Math.log(unit(first))), angle = 2 * Math.PI * unit(second);
  return [radius * Math.cos(angle), radius * Math.sin(angle)];
}

/** One number spread evenly over (-bound, bound). */
export const uniformValue = (bound: number, word: number): number => (2 * unit(word) - 1) * bound;

interface Drawing {
  readonly memory: WebAssembly.Memory;
  /** Fills `[begin, end)` and returns where the list of those in doubt ends. */
  readonly normal: (begin: number, end: number, std: number, doubt: number) => number;
  readonly uniform: (begin: number, end: number, bound: number) => void;
}
let drawing: Drawing | undefined;

function open(): Drawing {
  if (drawing) return drawing;
  const memory = new WebAssembly.Memory({ initial: Math.ceil(memoryBytes / 65536) });
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(randomModule()), { nn: { memory } });
  return drawing = { memory, ...exports } as unknown as Drawing;
}

/**
 * Fills as many values as whole vectors hold with what the stream gives, and moves the stream on.
 *
 * @param margin as `doubt`; all values are left to JavaScript where it is large
 * @returns how many were filled
 */
export function fillNormal(values: Float32Array, state: RandomState, std: number, margin = doubt): number {
  return fill(values, state, ({ normal, memory }, end) => {
    const list = new DataView(memory.buffer), stop = normal(valuesAt, end, std, margin);
    for (let at = doubtAt; at < stop; at += doubtBytes) {
      const place = list.getUint32(at + 16, true), word = (i: number) => list.getUint32(at + 4 * i, true);
      [...normalPair(std, word(0), word(1)), ...normalPair(std, word(2), word(3))].forEach((value, i) =>
        list.setFloat32(place + 4 * i, value, true)
      );
    }
  });
}

/** The same with numbers spread evenly over (-bound, bound). */
export function fillUniform(values: Float32Array, state: RandomState, bound: number): number {
  return fill(values, state, ({ uniform }, end) => uniform(valuesAt, end, bound));
}

function fill(values: Float32Array, state: RandomState, draw: (drawing: Drawing, end: number) => void): number {
  const whole = values.length - values.length % 4;
  if (whole === 0) return 0;
  const opened = open(), { memory } = opened;
  const kept = new Uint32Array(memory.buffer, stateAt, 4);
  kept.set(state);
  for (let begin = 0; begin < whole; begin += blockLength) {
    const count = Math.min(blockLength, whole - begin);
    draw(opened, valuesAt + 4 * count);
    values.set(new Float32Array(memory.buffer, valuesAt, count), begin);
  }
  state.set(kept);
  return whole;
}

type Code = number[];
/** A number of 64 bits, as a type. */
const f64 = 0x7c;

/**
 * The module, in WebAssembly's binary format (https://webassembly.github.io/spec/core/binary/). Each function draws four
 * words a turn of its loop, as the vector `words`. Logarithm, sine and cosine are those of fdlibm (Sun Microsystems 1993),
 * without their special cases: arguments are in (0, 1), and angles in turns, of which the nearest quarter is taken off first.
 */
export function randomModule(): Uint8Array<ArrayBuffer> {
  const set = (local: number, value: Code) => [...value, ...setLocal(local)];
  const constant32 = (value: number) => [0x41, ...signed(value)];
  type Two = (a: Code, b: Code) => Code;
  const binary = (operation: number): Two => (a, b) => [...a, ...b, operation];
  const add = binary(0x6a), mul = binary(0x6c), xor = binary(0x73), shl = binary(0x74), rotl = binary(0x77);
  const two = (operation: number): Two => (a, b) => [...a, ...b, ...simd(operation)];
  const one = (operation: number) => (a: Code) => [...a, ...simd(operation)];
  const plus = two(0xf0), minus = two(0xf1), times = two(0xf2), over = two(0xf3);
  const root = one(0xef), nearest = one(0x94), demote = one(0x5e), toDouble = one(0xff), ofInteger = one(0xfe);
  const both = two(0x4e), either = two(0x51), plusWhole = two(0xce), minusWhole = two(0xd1), differ = two(0x38);
  const choose = (a: Code, b: Code, mask: Code) => [...a, ...b, ...mask, ...simd(0x52)];
  const shifted = (operation: number) => (a: Code, by: number) => [...a, ...constant32(by), ...simd(operation)];
  const left = shifted(0xcb), right = shifted(0xcc);
  const splat = (value: Code) => [...value, ...simd(0x14)];
  const bytesOf = (values: Float64Array | BigUint64Array) => [...new Uint8Array(values.buffer)];
  /** Constants of the function at hand, by their bytes: locals, which are nearer than what an instruction holds. */
  let constants = new Map<string, { readonly local: number; readonly set: Code }>();
  let nextLocal: (type: number) => number;
  const constant = (values: Float64Array | BigUint64Array) => {
    const bytes = bytesOf(values), key = bytes.join();
    let known = constants.get(key);
    if (!known) {
      const local = nextLocal(v128);
      constants.set(key, known = { local, set: set(local, simd(0x0c, ...bytes)) });
    }
    return get(known.local);
  };
  const number = (value: number) => constant(Float64Array.of(value, value));
  const whole = (value: bigint) => constant(BigUint64Array.of(value, value));
  /** Words of two vectors side by side, by number: 0 to 3 of the first, 4 to 7 of the second. */
  const pick = (a: Code, b: Code, words: readonly number[]) => [
    ...a,
    ...b,
    ...simd(0x0d, ...words.flatMap((word) => [0, 1, 2, 3].map((byte) => 4 * word + byte))),
  ];
  const polynomial = (x: Code, coefficients: readonly number[]): Code =>
    coefficients.slice(0, -1).reduceRight<Code>(
      (sum, coefficient) => plus(number(coefficient), times(x, sum)),
      number(coefficients.at(-1)!),
    );
  const load = (at: number) => [...constant32(at), 0x28, 2, 0];
  const store = (at: number, value: Code) => [...constant32(at), ...value, 0x36, 2, 0];

  /** A function of `parameters` with a loop in it, whose body is made from places for locals. */
  function loopOver(
    parameters: readonly number[],
    results: readonly number[],
    body: (local: (type: number) => number, words: Code, at: Code) => { before?: Code; turn: Code; after?: Code },
  ) {
    const locals: number[] = [];
    const local = (type: number) => parameters.length + locals.push(type) - 1;
    constants = new Map();
    nextLocal = local;
    const s0 = local(i32), s1 = local(i32), s2 = local(i32), s3 = local(i32);
    const state = [s0, s1, s2, s3], shiftedWord = local(i32), words = local(v128);
    const word = (lane: number) => [
      ...get(words),
      ...mul(rotl(mul(get(s1), constant32(5)), constant32(7)), constant32(9)),
      ...simd(0x1c, lane),
      ...set(words, []),
      ...set(shiftedWord, shl(get(s1), constant32(9))),
      ...set(s2, xor(get(s2), get(s0))),
      ...set(s3, xor(get(s3), get(s1))),
      ...set(s1, xor(get(s1), get(s2))),
      ...set(s0, xor(get(s0), get(s3))),
      ...set(s2, xor(get(s2), get(shiftedWord))),
      ...set(s3, rotl(get(s3), constant32(11))),
    ];
    const { before = [], turn, after = [] } = body(local, get(words), get(0));
    const code = [
      ...state.flatMap((each, i) => set(each, load(stateAt + 4 * i))),
      ...before,
      ...[...constants.values()].flatMap((each) => each.set),
      ...loop(...[0, 1, 2, 3].map(word), turn, advance(0, 16), againWhileBelow(0, 1)),
      ...state.flatMap((each, i) => store(stateAt + 4 * i, get(each))),
      ...after,
      0x0b,
    ];
    const declared = [...vector(locals.map((type) => [1, type])), ...code];
    return {
      type: [0x60, ...vector(parameters.map((type) => [type])), ...vector(results.map((type) => [type]))],
      code: [...unsigned(declared.length), ...declared],
    };
  }
  /** Of words 0 and 2, or 1 and 3: as doubles in (0, 1). */
  const unitOf = (words: Code, first: 0 | 1) =>
    times(plus(toDouble(pick(words, words, [first, first + 2, 0, 0])), number(0.5)), number(2 ** -32));

  const normal = loopOver([i32, i32, f64, f64], [i32], (local, words, at) => {
    const keep = () => local(v128), end = local(i32);
    const x = keep(), k = keep(), f = keep(), s = keep(), z = keep(), radius = keep(), turns = keep(), quarter = keep();
    const sine = keep(), cosine = keep(), swap = keep(), first = keep(), second = keep(), far = keep(), above = keep();
    const halfSquare = times(number(0.5), times(get(f), get(f)));
    const atanh = times(
      get(z),
      polynomial(get(z), [
        6.666666666666735130e-01,
        3.999999999940941908e-01,
        2.857142874366239149e-01,
        2.222219843214978396e-01,
        1.818357216161805012e-01,
        1.531383769920937332e-01,
        1.479819860511658591e-01,
      ]),
    );
    const logarithm = minus(
      times(get(k), number(6.93147180369123816490e-01)),
      minus(
        minus(
          halfSquare,
          plus(times(get(s), plus(halfSquare, atanh)), times(get(k), number(1.90821492927058770002e-10))),
        ),
        get(f),
      ),
    );
    /** The parts of a radius as values of `float32`: cosine and sine of one pair, then of the other. */
    const values = (moved: Two) =>
      pick(demote(moved(get(first), get(far))), demote(moved(get(second), get(far))), [0, 4, 1, 5]);
    const turn = [
      // radius: std * sqrt(-2 log(x)), x = 2^k (1 + f) with 1 + f between the roots of a half and of two
      ...set(x, unitOf(words, 0)),
      ...set(k, right(minusWhole(get(x), whole(0x3fe6a09e00000000n)), 52)),
      ...set(f, minus(minusWhole(get(x), left(get(k), 52)), number(1))),
      ...set(k, ofInteger(pick(get(k), get(k), [0, 2, 0, 0]))),
      ...set(s, over(get(f), plus(number(2), get(f)))),
      ...set(z, times(get(s), get(s))),
      ...set(radius, times(splat(get(2)), root(times(number(-2), logarithm)))),
      // sine and cosine of what is left of the angle, an eighth of a turn at most
      ...set(turns, unitOf(words, 1)),
      ...set(quarter, nearest(times(get(turns), number(4)))),
      ...set(x, times(minus(get(turns), times(get(quarter), number(0.25))), number(2 * Math.PI))),
      ...set(z, times(get(x), get(x))),
      ...set(
        sine,
        plus(
          get(x),
          times(
            times(get(x), get(z)),
            polynomial(get(z), [
              -1.66666666666666324348e-01,
              8.33333333332248946124e-03,
              -1.98412698298579493134e-04,
              2.75573137070700676789e-06,
              -2.50507602534068634195e-08,
              1.58969099521155010221e-10,
            ]),
          ),
        ),
      ),
      ...set(
        cosine,
        plus(
          minus(number(1), times(number(0.5), get(z))),
          times(
            times(get(z), get(z)),
            polynomial(get(z), [
              4.16666666666666019037e-02,
              -1.38888888888741095749e-03,
              2.48015872894767294178e-05,
              -2.75573143513906633035e-07,
              2.08757232129817482790e-09,
              -1.13596475577881948265e-11,
            ]),
          ),
        ),
      ),
      // and back by the quarters, whose number is the low bits of this sum
      ...set(quarter, plus(get(quarter), number(2 ** 52))),
      ...set(swap, minusWhole(whole(0n), both(get(quarter), whole(1n)))),
      ...set(
        first,
        times(
          get(radius),
          either(
            choose(get(sine), get(cosine), get(swap)),
            left(both(plusWhole(get(quarter), whole(1n)), whole(2n)), 62),
          ),
        ),
      ),
      ...set(
        second,
        times(
          get(radius),
          either(choose(get(cosine), get(sine), get(swap)), left(both(get(quarter), whole(2n)), 62)),
        ),
      ),
      ...set(far, times(get(radius), splat(get(3)))),
      ...set(above, values(plus)),
      ...[...at, ...get(above), ...simd(0x0b, 2, 0)], // stores
      ...[...differ(values(minus), get(above)), ...simd(0x53), 0x04, 0x40], // if any
      ...[...get(end), ...words, ...simd(0x0b, 2, 0)],
      ...[...get(end), ...at, 0x36, 2, 16],
      ...set(end, add(get(end), constant32(doubtBytes))),
      0x0b,
    ];
    return { before: set(end, constant32(doubtAt)), turn, after: get(end) };
  });
  const uniform = loopOver([i32, i32, f64], [], (_local, words, at) => {
    const part = (first: 0 | 1) =>
      demote(times(minus(times(number(2), unitOf(words, first)), number(1)), splat(get(2))));
    return { turn: [...at, ...pick(part(0), part(1), [0, 4, 1, 5]), ...simd(0x0b, 2, 0)] };
  });
  const functions = [normal, uniform];
  return Uint8Array.of(
    ...[0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0], // "\0asm", version 1
    ...section(1, functions.map(({ type }) => type)),
    ...section(2, [[...text("nn"), ...text("memory"), 0x02, 0, ...unsigned(1)]]), // a memory of a page or more
    ...section(3, functions.map((_, i) => [i])),
    ...section(7, ["normal", "uniform"].map((name, i) => [...text(name), 0x00, i])),
    ...section(10, functions.map(({ code }) => code)),
  );
}
