/** What one reading of a row of logits yields, as text: its maximum and where, its sum of exponentials, its sum. */

/** The type `Online`, and how two of them, or a vector, are joined. Needs `V` and `total`. */
export const onlineText = (width: 1 | 4): string =>
  `struct Online {
  most: f32,         // largest so far
  at: u32,           // its first place
  exponentials: f32, // sum of e^(v - most)
  sum: f32,
}
fn joined(a: Online, b: Online) -> Online {
  let most = max(a.most, b.most);
  let second = b.most > a.most || (b.most == a.most && b.at < a.at);
  let exponentials = a.exponentials * exp(a.most - most) + b.exponentials * exp(b.most - most);
  return Online(most, select(a.at, b.at, second), exponentials, a.sum + b.sum);
}
${
    width === 4
      ? `fn largest(v: V) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }
fn place(v: V, m: f32) -> u32 { return select(select(select(3u, 2u, v.z == m), 1u, v.y == m), 0u, v.x == m); }`
      : `fn largest(v: V) -> f32 { return v; }
fn place(v: V, m: f32) -> u32 { return 0u; }`
  }`;

/** Takes vector `v` of place `c` into `mine`. */
export const takeIn = (width: 1 | 4, summed: boolean): string =>
  `let m = largest(v);
      if (m > mine.most) {
        mine.exponentials *= exp(mine.most - m);
        mine.most = m;
        mine.at = c * ${width}u + place(v, m);
      }
      mine.exponentials += total(exp(v - mine.most));${summed ? "\n      mine.sum += total(v);" : ""}`;
