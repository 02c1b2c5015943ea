/** WGSL that the forms share: how a panel of A or B is read, four elements at once, and how sums end up in C. */
import type { Storage } from "../storage.ts";
import type { MatmulShape } from "./shape.ts";

/** One of the two inputs as `outer` lines (rows of A, columns of B) of `k` terms each. */
export interface Panel {
  readonly name: "a" | "b";
  readonly outer: number;
  readonly k: number;
  /** The dimension along which memory runs. */
  readonly contiguous: "outer" | "depth";
  /** Four neighbours are one aligned `vec4f`. */
  readonly vectors: boolean;
}

export function panelsOf({ m, n, k, transposeA, transposeB }: MatmulShape): { a: Panel; b: Panel } {
  const panel = (name: "a" | "b", outer: number, depthRuns: boolean): Panel => ({
    name,
    outer,
    k,
    contiguous: depthRuns ? "depth" : "outer",
    vectors: (depthRuns ? k : outer) % 4 === 0,
  });
  return { a: panel("a", m, !transposeA), b: panel("b", n, transposeB) };
}

/** Types of a pass's operands by name as the text sees them: vectors wherever the sizes allow them. */
export function elementTypes(shape: MatmulShape): Record<string, string> {
  const { a, b } = panelsOf(shape);
  const columns = shape.n % 4 === 0 ? "vec4f" : "f32";
  const name = (panel: Panel) => panel.vectors ? "vec4f" : "f32";
  return { a: name(a), b: name(b), bias: columns, residual: columns, c: columns, partial: columns };
}

/**
 * A function `name(outer, depth, z) -> vec4f`: the four elements of product `z` from there along the contiguous
 * dimension. Past the outer edge it reads what is inside (such sums are never stored); past `k`, where `guarded`, it
 * gives zeros, on both sides of the product, as zero times what lies beyond may be no number.
 *
 * @param tile lines that are read together, from a multiple of it on: where it divides `outer`, no edge is passed
 * @param halves whether it gives a `vec4<f16>`, of an operand stored so
 */
export function loader(
  name: string,
  panel: Panel,
  stored: Storage,
  guarded: boolean,
  tile?: number,
  halves = false,
): string {
  const load = halves ? (operand: string, index: string) => `${operand}[${index}]` : stored.load;
  const vector = halves ? "vec4<f16>" : "vec4f", zero = halves ? "0h" : "0f";
  const { outer, k, contiguous, vectors } = panel;
  const alongDepth = contiguous === "depth";
  const width = alongDepth ? k : outer, lines = alongDepth ? outer : k;
  const inside = (expression: string, count: number) => `min(${expression}, ${count - 1}u)`;
  const whole = tile !== undefined && outer % tile === 0;
  const line = alongDepth ? whole ? "outer" : inside("outer", outer) : guarded ? inside("depth", k) : "depth";
  const open = `fn ${name}(outer: u32, depth: u32, z: u32) -> ${vector} {`;
  if (vectors) {
    const place = alongDepth
      ? guarded ? inside("depth / 4u", k / 4) : "depth / 4u"
      : whole
      ? "outer / 4u"
      : inside("outer / 4u", Math.max(1, outer / 4));
    const at = `(z * ${lines}u + ${line}) * ${width / 4}u + ${place}`;
    return `${open}
  ${guarded ? `if (depth >= ${k}u) { return ${vector}(); }` : ""}
  return ${load(panel.name, at)};
}`;
  }
  const along = alongDepth ? "depth" : "outer";
  const element = (i: number) => {
    const value = load(panel.name, `base + ${inside(`${along} + ${i}u`, width)}`);
    if (!guarded) return value;
    return `select(${zero}, ${value}, depth${alongDepth ? ` + ${i}u` : ""} < ${k}u)`;
  };
  return `${open}
  let base = (z * ${lines}u + ${line}) * ${width}u;
  return ${vector}(${[0, 1, 2, 3].map(element).join(", ")});
}`;
}

/**
 * A function `finish(row, column, z, sum)` that adds bias and residual, if any, and stores four neighbouring columns of
 * C (or of `target`), leaving out what is past the edges. `tile` tells which edges can be passed at all.
 */
export function finisher(
  { m, n, accumulate, bias, residual }: MatmulShape,
  tile: { readonly rows: number; readonly columns: number },
  { load, store: write, add }: Storage,
  target = "c",
): string {
  const guards = [
    ...(m % tile.rows !== 0 ? [`row >= ${m}u`] : []),
    ...(n % tile.columns !== 0 ? [`column >= ${n}u`] : []),
  ];
  const guard = guards.length > 0 ? `if (${guards.join(" || ")}) { return; }` : "";
  const terms = (columnIndex: string, at: string) => [
    ...(bias ? [load("bias", columnIndex)] : []),
    ...(residual ? [load("residual", at)] : []),
  ];
  const store = (sum: string, columnIndex: string, at: string) =>
    (accumulate ? add : write)(target, at, [sum, ...terms(columnIndex, at)].join(" + "));
  const body = n % 4 === 0
    ? `let at = ((z * ${m}u + row) * ${n}u + column) / 4u;
  ${store("sum", "column / 4u", "at")}`
    : `let at = (z * ${m}u + row) * ${n}u + column;
  ${
      [0, 1, 2, 3].map((i) => {
        const text = store(`sum[${i}]`, `column + ${i}u`, `at + ${i}u`);
        return i === 0 ? text : `if (column + ${i}u < ${n}u) { ${text} }`;
      }).join("\n  ")
    }`;
  return `fn finish(row: u32, column: u32, z: u32, sum: vec4f) {
  ${guard}
  ${body}
}`;
}

/**
 * A function `before(row, column, z)` that gives four neighbouring columns of C (or of `target`) as they are, for sums that are added to
 * them: read before the first store, as no compiler moves a load of C over a store to it.
 */
export function reader({ m, n }: MatmulShape, { load }: Storage, target = "c"): string {
  const open = "fn before(row: u32, column: u32, z: u32) -> vec4f {";
  const line = `z * ${m}u + min(row, ${m - 1}u)`;
  if (n % 4 === 0) {
    return `${open}\n  return ${load(target, `((${line}) * ${n}u + min(column, ${n - 4}u)) / 4u`)};\n}`;
  }
  return `${open}
  let line = (${line}) * ${n}u;
  return vec4f(${[0, 1, 2, 3].map((i) => load(target, `line + min(column + ${i}u, ${n - 1}u)`)).join(", ")});
}`;
}

/** Numbers from zero. */
export const upTo = (count: number): number[] => Array.from({ length: count }, (_, i) => i);
