/**
 * Matrix units as text: a subgroup of 32 lanes holds matrices of 16 x 16, multiplies two of `f16` and adds the product to
 * one of `f32`. What a provider calls them stands here alone.
 *
 * Left and right matrices are read from a tile in workgroup memory, an array of `vec4u` of eight `f16` each.
 *
 * `subgroupMatrix` is Dawn's extension `chromium_experimental_subgroup_matrix`. `emulatedMatrix` is plain WGSL: each lane
 * holds half a row of a sum and reads what it multiplies from the tile as it goes. It is slow, and serves tests alone: it
 * shows that a kernel's tiling, staging, edges and epilogue are right, not that a device's matrix units are.
 * llvmpipe leaves the loops of an invocation after 65,535 turns in all, without a word, which bounds the depth of such tests.
 */

/** Rows, columns and terms of a matrix. */
export const matrixSize = 16;
/** Lanes that share a matrix. */
export const matrixLanes = 32;
/** `f16` elements of a word of a tile. */
export const octet = 8;

/** Where a matrix begins in a tile, in words, and how many words its lines are apart. */
export interface MatrixPlace {
  readonly tile: string;
  /** An expression. */
  readonly offset: string;
  readonly stride: number;
  /** Memory runs along the terms of the sums: along a row of the left matrix, down a column of the right one. */
  readonly alongDepth: boolean;
}

export interface MatrixUnit {
  /** Matrices are read where they lie, each time they multiply, so that they must stay there. */
  readonly readsLate: boolean;
  /** Must begin the text. */
  readonly directives: string;
  /** Functions that the statements below call, for tiles of these names. */
  declarations(tiles: readonly string[]): string;
  /** Statements. */
  sum(name: string): string;
  clear(name: string): string;
  left(name: string, place: MatrixPlace): string;
  right(name: string, place: MatrixPlace): string;
  multiplyAdd(sum: string, left: string, right: string): string;
  /** An expression: the largest of the 256 words of 64 `vec4u` of an array, from a place on. */
  largest(array: string, from: number): string;
  /** Declares `name`: `value`, an `f32`, of the lane beside this one (0 and 1, 2 and 3 …). All invocations must come here. */
  neighbour(name: string, value: string): string;
  /**
   * Stores a sum in an array of `vec4u` in workgroup memory, from a word on, lines `stride` words apart: its rows, or its
   * columns.
   */
  store(sum: string, array: string, offset: string, stride: number, lines?: "rows" | "columns"): string;
}

/** Dawn's matrix units. */
export const subgroupMatrix: MatrixUnit = {
  readsLate: false,
  directives: `enable f16;
enable subgroups;
enable chromium_experimental_subgroup_matrix;
diagnostic(off, chromium.subgroup_matrix_uniformity);
`,
  declarations: () => "",
  sum: (name) => `var ${name} = subgroup_matrix_result<f32, 16, 16>();`,
  clear: (name) => `${name} = subgroup_matrix_result<f32, 16, 16>();`,
  left: (name, { tile, offset, stride, alongDepth }) =>
    `let ${name} = subgroupMatrixLoad<subgroup_matrix_left<f16, 16, 16>, ${alongDepth ? "row_major" : "col_major"}>(` +
    `&${tile}, ${offset}, ${stride}u);`,
  right: (name, { tile, offset, stride, alongDepth }) =>
    `let ${name} = subgroupMatrixLoad<subgroup_matrix_right<f16, 16, 16>, ${alongDepth ? "col_major" : "row_major"}>(` +
    `&${tile}, ${offset}, ${stride}u);`,
  multiplyAdd: (sum, left, right) => `${sum} = subgroupMatrixMultiplyAccumulate(${left}, ${right}, ${sum});`,
  largest: (array, from) =>
    `subgroupMax(mostOf(max(${array}[${from}u + lane], ${array}[${from + matrixLanes}u + lane])))`,
  neighbour: (name, value) => `let ${name} = subgroupShuffleXor(${value}, 1u);`,
  store: (sum, array, offset, stride, lines = "rows") =>
    `subgroupMatrixStore<${lines === "rows" ? "row_major" : "col_major"}>(&${array}, ${offset}, ${sum}, ${stride}u);`,
};

/** The same in plain WGSL; the text must have `local`, the invocation's index, and `lane`, its place among 32. */
export const emulatedMatrix: MatrixUnit = {
  readsLate: true,
  directives: "",
  declarations: (tiles) =>
    "var<workgroup> beside: array<f32, 256>;" + tiles.map((tile) => `
fn ${tile}Element(i: u32) -> f32 { return unpack2x16float(${tile}[i / 8u][i / 2u % 4u])[i % 2u]; }`).join(""),
  sum: (name) => `var ${name} = array<vec4f, 2>();`, // said, or Deno keeps it from turn to turn of a loop
  clear: (name) => `${name} = array<vec4f, 2>();`,
  // A matrix is its place: first element, elements from row to row and from term to term.
  left: (name, { offset, stride, alongDepth }) => `let ${name} = ${place(offset, stride, alongDepth)};`,
  right: (name, { offset, stride, alongDepth }) => `let ${name} = ${place(offset, stride, alongDepth)};`,
  multiplyAdd: (sum, left, right) => `
{
  let row = ${left}.x + lane / 2u * ${left}.y;
  let more = local >> 16u; // none, but compilers do not know, and leave the loops loops
  for (var column = 0u; column < 8u + more; column++) {
    let line = ${right}.x + (lane % 2u * 8u + column) * ${right}.y;
    for (var p = 0u; p < 16u + more; p++) {
      ${sum}[column / 4u][column % 4u] += ${tileOf(left)}Element(row + p * ${left}.z) * ${
    tileOf(right)
  }Element(line + p * ${right}.z);
    }
  }
}`,
  largest: (array, from) =>
    `mostOf(${
      Array.from({ length: 2 * matrixLanes }, (_, i) => `${array}[${from + i}u]`).reduce((a, b) => `max(${a}, ${b})`)
    })`,
  neighbour: (name, value) => `
beside[local] = ${value};
workgroupBarrier();
let ${name} = beside[local ^ 1u];
workgroupBarrier();`,
  store: (sum, array, offset, stride, lines = "rows") =>
    lines === "rows"
      ? `
{
  let place = ${offset} + lane / 2u * ${stride}u + lane % 2u * 2u;
  ${array}[place] = bitcast<vec4u>(${sum}[0]);
  ${array}[place + 1u] = bitcast<vec4u>(${sum}[1]);
}`
      : `
for (var column = 0u; column < 8u; column++) {
  ${array}[${offset} + (lane % 2u * 8u + column) * ${stride}u + lane / 8u][lane / 2u % 4u] = bitcast<u32>(${sum}[column / 4u][column % 4u]);
}`,
};

const place = (offset: string, stride: number, alongDepth: boolean) =>
  alongDepth ? `vec3u((${offset}) * 8u, ${stride * octet}u, 1u)` : `vec3u((${offset}) * 8u, 1u, ${stride * octet}u)`;

/** Names of matrices begin with their tile's and an underscore. */
const tileOf = (matrix: string) => matrix.split("_")[0]!;
