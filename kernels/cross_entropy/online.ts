/**
 * What one reading of a row of logits yields, as text: its maximum, its sum of exponentials, its sum; and the maximum's
 * place, for which the lane that has it reads a few vectors again.
 *
 * Four vectors are taken in together. Each for itself, with its place and a branch where the maximum grows, reached 0.64
 * of the copy rate on an H200: nearly always some lane's grows.
 */
import { reduction, type RowLayout } from "../norm/rows.ts";
import type { DeviceTraits } from "../kernel.ts";

/**
 * What is no number, by bits: a compiler may take it that there is none, and a text cannot name one. A row whose logits
 * include one, or an infinity that is its largest, has no loss: a device need not carry a NaN through `max` and `exp`
 * (SwiftShader does not), but through a sum it does.
 */
export const notANumberText = `
fn isNaN(v: f32) -> bool { return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u; }
fn notANumber(v: f32) -> f32 { return bitcast<f32>(bitcast<u32>(v) | 0x7fc00000u); }
fn hasNoLoss(most: f32, sum: f32) -> bool { return isNaN(sum) || bitcast<u32>(most) == 0x7f800000u; }`;

/** The type `Online`, how lanes join theirs (`joinAll`), and how they agree on a place (`joinPlaces`). Needs `V` and `total`. */
export const onlineText = (layout: RowLayout, traits: DeviceTraits): string =>
  `${notANumberText}
struct Online {
  most: f32,         // largest so far
  block: u32,        // first of the vectors among which it came up
  exponentials: f32, // sum of e^(v - most)
  sum: f32,
}
fn joined(a: Online, b: Online) -> Online {
  let most = max(a.most, b.most);
  let exponentials = a.exponentials * exp(a.most - most) + b.exponentials * exp(b.most - most);
  return Online(most, 0u, exponentials, a.sum + b.sum);
}
${
    layout.width === 4
      ? `fn largest(v: V) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }
fn place(v: V, m: f32) -> u32 { return select(select(select(3u, 2u, v.z == m), 1u, v.y == m), 0u, v.x == m); }`
      : `fn largest(v: V) -> f32 { return v; }
fn place(v: V, m: f32) -> u32 { return 0u; }`
  }
${
    reduction(
      layout,
      { name: "joinAll", type: "Online", merge: "joined(a, b)", fields: ["most", "block", "exponentials", "sum"] },
      traits,
    )
  }
${reduction(layout, { name: "joinPlaces", type: "u32", merge: "min(a, b)" }, traits)}`;

/** Before anything was taken in. */
export const nothingYet = "Online(-3.4028234e38f, 0xffffffffu, 0f, 0f)";

/** Takes vectors, the first of them at `start`, into `mine`. */
export const takeIn = (vectors: readonly string[]): string =>
  `let m = ${vectors.map((v) => `largest(${v})`).reduce((a, b) => `max(${a}, ${b})`)};
    let most = max(mine.most, m);
    mine.exponentials = mine.exponentials * exp(mine.most - most) + total(${
    vectors.map((v) => `exp(${v} - most)`).join(" + ")
  });
    mine.block = select(mine.block, start, m > mine.most);
    mine.most = most;
    mine.sum += total(${vectors.join(" + ")});`;

/** Declares `all`, what all lanes took in, and `at`, the first place of its maximum. `load` is of `base` and `c`. */
export const joinText = ({ width, vectors, lanes }: RowLayout, load: string): string =>
  `let all = joinAll(mine, lane);
  var mineAt = 0xffffffffu;
  if (mine.most == all.most && mine.block != 0xffffffffu) {
    for (var k = 4u; k > 0u; k--) {
      let c = mine.block + (k - 1u) * ${lanes}u;
      if (c < ${vectors}u) {
        let v = ${load};
        if (largest(v) == all.most) { mineAt = c * ${width}u + place(v, all.most); }
      }
    }
  }
  let at = joinPlaces(mineAt, lane);`;
