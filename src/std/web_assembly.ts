/**
 * WebAssembly's binary format (https://webassembly.github.io/spec/core/binary/), as much of it as small modules take that
 * are written out by hand where they are used.
 */

/** LEB128 of a whole number that is not negative. */
export const unsigned = (n: number): number[] => n < 128 ? [n] : [(n & 127) | 128, ...unsigned(n >>> 7)];
/** LEB128 of a whole number, as constants in code are. */
export const signed = (n: number): number[] => n >= -64 && n < 64 ? [n & 127] : [(n & 127) | 128, ...signed(n >> 7)];
/** Items with their count before them. */
export const vector = (items: readonly number[][]): number[] => [...unsigned(items.length), ...items.flat()];
export const text = (name: string): number[] => [...unsigned(name.length), ...new TextEncoder().encode(name)];
export const section = (id: number, items: readonly number[][]): number[] => {
  const body = vector(items);
  return [id, ...unsigned(body.length), ...body];
};

export const i32 = 0x7f, v128 = 0x7b;
export const get = (local: number): number[] => [0x20, ...unsigned(local)];
export const set = (local: number): number[] => [0x21, ...unsigned(local)];
/** A vector's instruction, by its number. */
export const simd = (operation: number, ...rest: number[]): number[] => [0xfd, ...unsigned(operation), ...rest];
/** Adds a constant to a local. */
export const advance = (
  local: number,
  by: number,
): number[] => [...get(local), 0x41, ...signed(by), 0x6a, ...set(local)];
/** Begins again with the innermost `loop` while one local is below another. */
export const againWhileBelow = (local: number, end: number): number[] => [...get(local), ...get(end), 0x49, 0x0d, 0];
/** A loop of these instructions. */
export const loop = (...body: number[][]): number[] => [0x03, 0x40, ...body.flat(), 0x0b];

/**
 * A module of one function, exported.
 *
 * @param memories its imports from "memory", each by its name and limits: `[1, least]`, or `[3, least, most]` if shared
 * @param locals besides the parameters, each kind by its number and type
 */
export function oneFunction({ name, memories, parameters, locals = [], body }: {
  readonly name: string;
  readonly memories: readonly { readonly name: string; readonly limits: readonly number[] }[];
  readonly parameters: readonly number[];
  readonly locals?: readonly (readonly [count: number, type: number])[];
  readonly body: readonly number[];
}): Uint8Array<ArrayBuffer> {
  const code = [...vector(locals.map(([count, type]) => [...unsigned(count), type])), ...body, 0x0b];
  const memory = ({ name, limits: [kind, ...sizes] }: { name: string; limits: readonly number[] }) => [
    ...text("memory"),
    ...text(name),
    0x02,
    kind!,
    ...sizes.flatMap(unsigned),
  ];
  return Uint8Array.of(
    ...[0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0], // "\0asm", version 1
    ...section(1, [[0x60, ...vector(parameters.map((type) => [type])), ...vector([])]]), // types
    ...section(2, memories.map(memory)), // imports
    ...section(3, [[0]]), // functions
    ...section(7, [[...text(name), 0x00, 0]]), // exports
    ...section(10, [[...unsigned(code.length), ...code]]),
  );
}
