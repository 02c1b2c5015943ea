/**
 * How a kernel's text reads and writes its operands, whatever they are stored as. Values are `f32` in the text; only
 * `load`, `store` and `add` know the storage type, and for `f32` they are plain indexing.
 *
 * `f16` needs the device's `shader-f16`; past its largest number it is infinite on every device. `bf16` needs nothing: pairs lie in `u32` words, the first of a pair in the low
 * half, and the conversions are bit operations (to nearest, ties to even; NaN stays NaN).
 *
 * Who writes a `bf16` word, where words have two elements:
 *
 * - Where the operand's rows are multiples of four elements, an element of the array is a vector of four, two whole words,
 *   and the invocation that writes it owns both. This is the form of all sizes that models have.
 * - Elsewhere a word's halves belong to different invocations, maybe of different workgroups (a row of odd length ends in
 *   the middle of a word). Each exchanges its own half by one atomic, so the result does not depend on their order.
 *
 * A device that reads textures for less than buffers gets the operands that a text names for it as images (`images.ts`).
 *
 * An odd length leaves half a word over (`f16` too): padding that nothing reads, and that kernels leave as it was.
 */
import type { FloatType, HalfType } from "./host.ts";
import { imageText } from "./images.ts";
import type { DeviceTraits, ImageBinding, Operand, Pass } from "./kernel.ts";

export interface Storage {
  /** Must begin the text. Empty where nothing needs it. */
  readonly directives: string;
  /** Declares every operand as the binding of its place, and what the conversions need. */
  readonly bindings: string;
  /** An expression: the `f32` value (or vector) of an element. `index` is used more than once: a name, or cheap. */
  load(name: string, index: string): string;
  /** A statement that writes an element. */
  store(name: string, index: string, value: string): string;
  /** A statement that adds to an element, rounding the sum once. */
  add(name: string, index: string, value: string): string;
  /** What a pass binds, whose operands are at these places of its kernel's. */
  bound(places: readonly number[]): Pick<Pass, "operands" | "images">;
}

/** Numbers of an element of an operand's array. */
const widthOf = (vector: string, width: number) =>
  vector.startsWith("vec4") || (vector === "V" && width === 4) ? 4 : vector.startsWith("vec2") ? 2 : 1;

/** Words of an element as a texel; none where elements share words. */
function texelWords({ type }: Operand, count: 1 | 2 | 4): 1 | 2 | 4 | undefined {
  if (type !== "f16" && type !== "bf16") return count;
  return count === 4 ? 2 : undefined;
}

/**
 * @param vectors `f32` type of what an element of the operand's array holds, by name, where that is not one number:
 * `"vec4f"`, or `"V"`, an alias that the text declares
 * @param width elements of `V`
 * @param imaged operands that the text reads by `load` alone, and so may be images where a device prefers that
 * @throws {TypeError} when an operand is `f16` and the device has no such type
 */
export function storage(
  { features, software, imageReads = false }: Pick<DeviceTraits, "features" | "software" | "imageReads">,
  operands: readonly Operand[],
  vectors: Readonly<Record<string, string>> = {},
  width = 1,
  imaged: readonly string[] = [],
): Storage {
  const half = operands.find(({ type }) => type === "f16");
  if (half && !features.shaderF16) {
    throw new TypeError(
      `Cannot store operand ${half.name} as f16: the device has no shader-f16; bf16 and f32 work on every device`,
    );
  }
  const known = new Map(operands.map((operand) => {
    const vector = vectors[operand.name] ?? operand.type, count = widthOf(vector, width);
    const readsImage = imageReads && software && operand.access !== "write" && imaged.includes(operand.name);
    const words = readsImage ? texelWords(operand, count) : undefined;
    const inWords = software && operand.type === "f16" && count === 4 && operand.access !== "read";
    return [operand.name, { ...operand, vector, count, four: count === 4, words, inWords }];
  }));
  // What is read as an image alone needs no buffer.
  const buffers = [...known.values()].filter(({ access, words }) => words === undefined || access !== "read");
  const images = [...known.values()].filter(({ words }) => words !== undefined);
  const find = (name: string) => {
    const operand = known.get(name);
    if (!operand) throw new ReferenceError(`Cannot reach operand ${name}: there are ${[...known.keys()].join(", ")}`);
    return operand;
  };
  const shared = ({ type, access, four }: ReturnType<typeof find>) => type === "bf16" && !four && access !== "read";

  const declarations = buffers.map((operand, index) => {
    const { name, type, access, vector, four, inWords } = operand;
    const element = inWords
      ? "vec2u"
      : type === "f16"
      ? four ? "vec4<f16>" : "f16"
      : type === "bf16"
      ? four ? "vec2u" : shared(operand) ? "atomic<u32>" : "u32"
      : vector;
    return `@group(0) @binding(${index}) var<storage, ${access === "read" ? "read" : "read_write"}> ` +
      `${name}: array<${element}>;`;
  });
  declarations.push(
    ...images.map(({ name, length, count, words }, index) =>
      imageText(name, length / count, words!, buffers.length + index)
    ),
  );
  const packed = [...known.values()].filter(({ type }) => type === "bf16");
  const halves = [...known.values()].filter(({ type }) => type === "f16");
  if (halves.some(({ words, inWords }) => words !== undefined || inWords)) declarations.push(fromWordsText);
  if (halves.some(({ inWords }) => inWords)) declarations.push(toWordsText);
  if (halves.some(({ access, inWords }) => access !== "read" && !inWords)) declarations.push(roundingText);
  if (packed.some(({ four }) => four)) declarations.push(pairsText);
  if (packed.some(({ four }) => !four)) declarations.push(halvesText);
  declarations.push(...packed.filter(shared).map(({ name }) => exchangeText(name)));

  const load = (name: string, index: string): string => {
    const operand = find(name), { type, vector, four } = operand;
    if (operand.words !== undefined) {
      const texel = `${name}Texel(${index})`;
      if (type === "f16") return `fromWords(${texel}.xy)`;
      if (type === "bf16") return `fromPairs(${texel}.xy)`;
      const words = texel + { 1: ".x", 2: ".xy", 4: "" }[operand.words];
      return vector === "u32" || vector === "vec4u" ? words : `bitcast<${vector}>(${words})`;
    }
    if (operand.inWords) return `fromWords(${name}[${index}])`;
    if (type === "f16") return `${vector === "f16" ? "f32" : vector}(${name}[${index}])`;
    if (type !== "bf16") return `${name}[${index}]`;
    if (four) return `fromPairs(${name}[${index}])`;
    const word = `${name}[(${index}) / 2u]`;
    return `fromHalf(${shared(operand) ? `atomicLoad(&${word})` : word}, ${index})`;
  };
  const store = (name: string, index: string, value: string): string => {
    const { type, four, inWords } = find(name);
    if (inWords) return `${name}[${index}] = toWords(${value});`;
    if (type === "f16") return `${name}[${index}] = ${four ? "toHalves" : "toHalf16"}(${value});`;
    if (type !== "bf16") return `${name}[${index}] = ${value};`;
    return four ? `${name}[${index}] = toPairs(${value});` : `${name}Exchange(${index}, ${value});`;
  };
  return {
    directives: half ? "enable f16;\n" : "",
    bindings: declarations.join("\n"),
    load,
    store,
    add(name, index, value) {
      const { type } = find(name);
      if (type === "f16" || type === "bf16") return store(name, index, `${load(name, index)} + ${value}`);
      if (find(name).words !== undefined) return store(name, index, `${load(name, index)} + ${value}`);
      return `${name}[${index}] += ${value};`;
    },
    bound(places) {
      const place = new Map(operands.map(({ name }, index) => [name, places[index]]));
      return {
        operands: buffers.map(({ name }) => place.get(name)!),
        ...(images.length > 0 && {
          images: images.map(({ name, words }): ImageBinding => ({ operand: place.get(name)!, words: words! })),
        }),
      };
    },
  };
}

const fromWordsText = `
fn fromWords(words: vec2u) -> vec4f { return vec4f(unpack2x16float(words.x), unpack2x16float(words.y)); }`;

/**
 * To the nearest `f16`, ties to even, in integers: llvmpipe's compiler takes 35 ms for each vector that is converted by its
 * type, 2 for this. Sizes below the least normal number are rounded by an addition, in whose sum their last bit is the last.
 */
const toWordsText = `
fn toWords(v: vec4f) -> vec2u {
  let bits = bitcast<vec4u>(v);
  let size = bits & vec4u(0x7fffffffu);
  let normal = (size + vec4u(0xc8000fffu) + ((size >> vec4u(13u)) & vec4u(1u))) >> vec4u(13u);
  let small = bitcast<vec4u>(bitcast<vec4f>(size) + vec4f(0.5f)) & vec4u(0x7fffu);
  let rounded = min(select(normal, small, size < vec4u(0x38800000u)), vec4u(0x7c00u));
  let half = select(rounded, vec4u(0x7e00u), size > vec4u(0x7f800000u)) | ((bits >> vec4u(16u)) & vec4u(0x8000u));
  return half.xz | (half.yw << vec2u(16u));
}`;

/**
 * A number past the largest `f16` is made infinite before it is converted: WGSL leaves open what becomes of it, a device that
 * rounds towards zero makes it 65504, and the loss's scale depends on seeing it. No constant of a text may be infinite, so a
 * variable is. (naga has no `bitcast` to `f16`, by which the converted bits could be told.)
 */
const roundingText = `
var<private> infiniteBits = 0x7f800000u;
fn toHalves(v: vec4f) -> vec4<f16> {
  let infinite = vec4f(bitcast<f32>(infiniteBits));
  return vec4<f16>(select(v, select(infinite, -infinite, v < vec4f()), abs(v) >= vec4f(65520f)));
}
fn toHalf16(v: f32) -> f16 {
  let infinite = bitcast<f32>(infiniteBits);
  return f16(select(v, select(infinite, -infinite, v < 0f), abs(v) >= 65520f));
}`;

const fromPairsText = `
fn fromPairs(words: vec2u) -> vec4f {
  return bitcast<vec4f>(vec4u(words.x << 16u, words.x & 0xffff0000u, words.y << 16u, words.y & 0xffff0000u));
}`;

/** What two words of a half type hold, for a text that reads more of them at once: a function's name, and its text. */
export const fromTwoWords: Readonly<Record<HalfType, readonly [name: string, text: string]>> = {
  f16: ["fromWords", fromWordsText],
  bf16: ["fromPairs", fromPairsText],
};

const pairsText = `${fromPairsText}
fn toPairs(v: vec4f) -> vec2u {
  let bits = bitcast<vec4u>(v);
  let even = bits + vec4u(0x7fffu) + ((bits >> vec4u(16u)) & vec4u(1u));
  let number = (bits & vec4u(0x7fffffffu)) <= vec4u(0x7f800000u);
  let upper = select(bits | vec4u(0x400000u), even, number);
  return (upper.xz >> vec2u(16u)) | (upper.yw & vec2u(0xffff0000u));
}`;

const halvesText = `
fn fromHalf(word: u32, i: u32) -> f32 { return bitcast<f32>((word >> (16u * (i & 1u))) << 16u); }
fn toHalf(v: f32) -> u32 {
  let bits = bitcast<u32>(v);
  let even = bits + 0x7fffu + ((bits >> 16u) & 1u);
  return select(bits | 0x400000u, even, (bits & 0x7fffffffu) <= 0x7f800000u) >> 16u;
}`;

/** Writes one half of a word and leaves the other to whoever has it, in one atomic: only this half is known. */
const exchangeText = (name: string) => `
fn ${name}Exchange(i: u32, v: f32) {
  let shift = 16u * (i & 1u);
  let old = (atomicLoad(&${name}[i / 2u]) >> shift) & 0xffffu;
  atomicXor(&${name}[i / 2u], (old ^ toHalf(v)) << shift);
}`;

/** Options that say what operands are stored as. */
export interface Stored {
  /** Activations and their gradients, in and out. Arithmetic and statistics of a row are `f32`. @default {"f32"} */
  readonly type?: FloatType;
}
