/**
 * What differs between devices in blocked attention. All passes (`flash.ts`) are made of a block of rows against blocks
 * of columns: products over the head dimension give a tile of weights, and weights times columns are summed up in
 * registers. A form says how an invocation shares in a block: which weights it holds, how operands reach it.
 *
 * Every invocation holds, for each of `localRows` rows, one `vec4f` of a tile (four columns), and `quads` `vec4f` of a
 * sum over columns (four elements of the head each).
 */

/** Loads four elements of a token's head, as WGSL text. */
export type Load = (token: string, quad: string) => string;

export interface BlockForm {
  /** Rows and columns (tokens) of a block. */
  readonly rows: number;
  readonly columns: number;
  readonly localRows: number;
  readonly quads: number;
  /** Quads of a head that are loaded: products read up to the first number, sums up to the second. */
  readonly paddedQuads: readonly [number, number];
  /** Lines before the declarations. */
  readonly prelude: string;
  /** Workgroup memory. */
  readonly declarations: string;
  /** `fn main(…) {` with the names `group` (workgroup) and what the other parts need. Close it with `}`. */
  readonly open: string;
  /** Token of local row i, an expression of `firstRow`. */
  row(i: number): string;
  /** Tokens of the four columns held, a `vec4u` expression of `firstColumn`. */
  readonly heldColumns: string;
  /** Quad of the head in sum j. */
  quad(j: number): string;
  /** Declares `${name}${i}`: the tile of products of rows and columns. */
  product(name: string, row: Load, column: Load): string;
  /** Adds to `${sum}${i}_${j}` the columns weighted by the tile `${name}${i}`. */
  weigh(sum: string, name: string, column: Load): string;
  /** Declares `${name}${i}`: `values[i]` merged over everyone who holds part of row i. */
  merge(name: string, values: readonly string[], operation: "max" | "add"): string;
}
