/**
 * The reference's sums by vectors, in WebAssembly: several times as quick as number by number in JavaScript, and the same
 * to the last bit, as each sum is of the same terms in the same order, in double.
 *
 * A tile of four rows by four columns is under way at a time, two rows of a column in a vector. Rows of A and columns of B
 * lie packed for it in the module's own memory, four beside each other, in double.
 */
import { advance, againWhileBelow, get, i32, loop, oneFunction, set, simd, v128 } from "../../src/std/web_assembly.ts";
import type { HostArray } from "../kernel.ts";

/** Numbers in a stretch of memory: `items` rows or columns of as many terms as sums have. */
export interface Terms {
  readonly values: HostArray;
  readonly first: number;
  readonly items: number;
  /** From an item's element to the next item's, and to the next term's. */
  readonly toItem: number;
  readonly toTerm: number;
}

/** Takes sums: of row `row + r` and column `column + j` at `sums[at + 4 * j + r]`, for r below `height`, j below `width`. */
export type TakeSums = (
  row: number,
  height: number,
  column: number,
  width: number,
  sums: Float64Array,
  at: number,
) => void;

const memoryBytes = 16 << 20;
/** What is packed of B at a time stays in a core's second cache, where the depth allows. */
const columnBytes = 1 << 20;
/** A panel, four items beside each other, of one term; a tile of sums. */
const termBytes = 32, tileBytes = 128;

/** Depths up to which there is room for what a tile takes. */
export const deepestProduct = (memoryBytes - tileBytes) / 2 / termBytes;

type Multiply = (a: number, b: number, c: number, aEnd: number, bEnd: number, panel: number) => void;
let opened: { readonly cells: Float64Array; readonly multiply: Multiply } | undefined;

function open() {
  if (opened) return opened;
  const memory = new WebAssembly.Memory({ initial: memoryBytes / 65536, maximum: memoryBytes / 65536 });
  const instance = new WebAssembly.Instance(new WebAssembly.Module(vectorProductModule()), { memory: { memory } });
  return opened = { cells: new Float64Array(memory.buffer), multiply: instance.exports.multiply as Multiply };
}

/**
 * Sums of products of all rows with all columns.
 *
 * @param depth terms of each sum, from 1 to `deepestProduct`
 */
export function productByVectors(rows: Terms, columns: Terms, depth: number, take: TakeSums): void {
  const { cells, multiply } = open(), panel = termBytes * depth;
  const most = Math.max(1, Math.floor(columnBytes / panel)); // panels of B
  for (let column = 0; column < columns.items; column += 4 * most) {
    const across = Math.min(most, Math.ceil((columns.items - column) / 4)), bEnd = across * panel;
    pack(columns, column, across, depth, cells, 0);
    const tall = Math.floor((memoryBytes - bEnd) / (panel + across * tileBytes));
    for (let row = 0; row < rows.items; row += 4 * tall) {
      const down = Math.min(tall, Math.ceil((rows.items - row) / 4)), aEnd = bEnd + down * panel;
      pack(rows, row, down, depth, cells, bEnd / 8);
      multiply(bEnd, 0, aEnd, aEnd, bEnd, panel);
      const width = Math.min(4 * across, columns.items - column);
      for (let p = 0; p < down; p++) {
        const first = row + 4 * p, at = aEnd / 8 + p * across * tileBytes / 8;
        take(first, Math.min(4, rows.items - first), column, width, cells, at);
      }
    }
  }
}

/** Items from `first` on, four beside each other. Those that a last panel lacks are its first one again. */
function pack(
  { values, first: base, items, toItem, toTerm }: Terms,
  first: number,
  panels: number,
  depth: number,
  cells: Float64Array,
  to: number,
): void {
  for (let item = first; item < first + 4 * panels; item += 4) {
    const place = (i: number) => base + (item + i < items ? item + i : item) * toItem;
    let p0 = place(0), p1 = place(1), p2 = place(2), p3 = place(3);
    for (const end = to + 4 * depth; to < end; to += 4) {
      cells[to] = values[p0];
      cells[to + 1] = values[p1];
      cells[to + 2] = values[p2];
      cells[to + 3] = values[p3];
      p0 += toTerm;
      p1 += toTerm;
      p2 += toTerm;
      p3 += toTerm;
    }
  }
}

/**
 * The module:
 *
 * ```text
 * (func (export "multiply") (param $a i32) (param $b i32) (param $c i32) (param $aEnd i32) (param $bEnd i32) (param $panel i32)
 *   (loop ;; over panels of A
 *     (local.set $column (local.get $b))
 *     (loop ;; over panels of B
 *       ;; the tile's sums are zero; $row is $a, $rowEnd is $a + $panel
 *       (loop ;; over terms
 *         ;; $low, $high: two and two rows of A; for each of the four columns
 *         (local.set $x (v128.load64_splat (local.get $column)))
 *         (local.set $sum_low (f64x2.add (local.get $sum_low) (f64x2.mul (local.get $low) (local.get $x))))
 *         (local.set $sum_high (f64x2.add (local.get $sum_high) (f64x2.mul (local.get $high) (local.get $x))))
 *         ;; $row and $column go on by 32
 *         (br_if 0 (i32.lt_u (local.get $row) (local.get $rowEnd))))
 *       ;; the tile is stored at $c, which goes on by 128
 *       (br_if 0 (i32.lt_u (local.get $column) (local.get $bEnd))))
 *     (local.set $a (local.get $rowEnd))
 *     (br_if 0 (i32.lt_u (local.get $a) (local.get $aEnd)))))
 * ```
 */
export function vectorProductModule(): Uint8Array<ArrayBuffer> {
  const [a, b, c, aEnd, bEnd, panel, row, column, rowEnd, low, high, x, sums] = Array.from({ length: 13 }, (_, i) => i);
  const columns = [0, 1, 2, 3], halves = [low, high];
  const sum = (j: number, half: number) => sums + 2 * j + half;
  // Places are multiples of 8 bytes: 2 to the 3.
  const load = (local: number, offset: number) => [...get(local), ...simd(0x00, 3, offset)];
  const splat = (local: number, offset: number) => [...get(local), ...simd(0x0a, 3, offset)];
  const zero = simd(0x0c, ...new Array(16).fill(0)), add = simd(0xf0), multiply = simd(0xf2);
  const addTerm = (j: number, half: number) => [
    ...get(sum(j, half)),
    ...get(halves[half]),
    ...get(x),
    ...multiply,
    ...add,
    ...set(sum(j, half)),
  ];
  const terms = loop(
    [...load(row, 0), ...set(low), ...load(row, 16), ...set(high)],
    ...columns.map((j) => [...splat(column, 8 * j), ...set(x), ...addTerm(j, 0), ...addTerm(j, 1)]),
    advance(row, termBytes),
    advance(column, termBytes),
    againWhileBelow(row, rowEnd),
  );
  const tiles = loop(
    ...columns.flatMap((j) => [0, 1].map((half) => [...zero, ...set(sum(j, half))])),
    [...get(a), ...set(row), ...get(a), ...get(panel), 0x6a, ...set(rowEnd)],
    terms,
    ...columns.flatMap((j) =>
      [0, 1].map((half) => [...get(c), ...get(sum(j, half)), ...simd(0x0b, 3, 32 * j + 16 * half)])
    ),
    advance(c, tileBytes),
    againWhileBelow(column, bEnd),
  );
  return oneFunction({
    name: "multiply",
    memories: [{ name: "memory", limits: [1, memoryBytes / 65536, memoryBytes / 65536] }],
    parameters: [i32, i32, i32, i32, i32, i32],
    locals: [[3, i32], [11, v128]],
    body: loop(
      [...get(b), ...set(column)],
      tiles,
      [...get(rowEnd), ...set(a)],
      againWhileBelow(a, aEnd),
    ),
  });
}
