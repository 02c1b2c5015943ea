/**
 * Tokens in the order of their ids, those of one id in the order in which they are: a stable sort, the same on every
 * device and every time. Few tokens are sorted in one dispatch, in which each counts the tokens that go before it; many
 * digit by digit from the last one on (the radix sort of Knuth 1973, volume 3, 5.2.5), in a dispatch a digit and one
 * before them, so that the work grows with the tokens and not with their square.
 *
 * Counts are kept by atomics on whole numbers, which come to the same in any order; no place is decided by who is first.
 */
import { type DeviceTraits, type Operand, type Pass, spread } from "../kernel.ts";
import { storage } from "../storage.ts";

export interface SortSizes {
  readonly tokens: number;
  /** Ids from here on, after `firstRow` is taken off, count as this one, which comes last. */
  readonly vocabulary: number;
  readonly firstRow: number;
}

/** Up to here one dispatch that looks at all pairs is quicker than several that do not. */
export const mostPairwise = 4096;
/** Tokens that a workgroup ranks at a time, and its invocations. */
const block = 256;
/** Workgroups of a digit's dispatch: each reads the counts of all. */
const mostGroups = 64;
/** Bits of a digit; a workgroup's two arrays of so many counts fit every device. */
const mostDigitBits = 9;

/** What a sort needs beside its result. */
export function sortScratch(sizes: SortSizes, pairwise = mostPairwise): readonly Operand[] {
  if (sizes.tokens <= pairwise) return [];
  const { digits, bins, groups } = layOut(sizes);
  return [
    { name: "half", type: "u32", length: 2 * sizes.tokens, access: "scratch" },
    { name: "counts", type: "u32", length: digits * groups * bins, access: "scratch" },
  ];
}

/**
 * Fills `sorted` `[2, tokens]`: ids less `firstRow`, and below them the tokens they belong to.
 *
 * @param places of ids, of `sorted` and of what `sortScratch` asks for among the kernel's operands
 */
export function sortPasses(
  traits: DeviceTraits,
  sizes: SortSizes,
  places: readonly number[],
  pairwise = mostPairwise,
): readonly Pass[] {
  return sizes.tokens <= pairwise ? [pairwisePass(traits, sizes, places)] : digitPasses(sizes, places);
}

/** An expression: what an id is sorted by. One before the first row becomes a huge one, which is in no table. */
const keyOf = (id: string, { vocabulary, firstRow }: SortSizes) =>
  `min(${id}${firstRow === 0 ? "" : ` - ${firstRow}u`}, ${vocabulary}u)`;

/** Sixteen invocations a token look through all ids, many at a time; in software one does. */
function pairwisePass(traits: DeviceTraits, sizes: SortSizes, places: readonly number[]): Pass {
  const { tokens } = sizes, lanes = traits.software ? 1 : 16, ahead = traits.software ? 1 : 4;
  const size = traits.software ? 16 : 256, each = size / lanes, workgroups = spread(Math.ceil(tokens / each));
  const width = tokens % 4 === 0 ? 4 : 1, vectors = tokens / width;
  const type = width === 4 ? "vec4u" : "u32", beside = width === 4 ? " + vec4u(0u, 1u, 2u, 3u)" : "";
  const operands: readonly Operand[] = [
    { name: "ids", type: "u32", length: tokens, access: "read" },
    { name: "sorted", type: "u32", length: 2 * tokens, access: "write" },
  ];
  const { bindings, load, bound } = storage(traits, operands, { ids: type }, width, ["ids"]);
  const upTo = Array.from({ length: ahead }, (_, k) => k);
  const sum = width === 4 ? "(before.x + before.y) + (before.z + before.w)" : "before";
  const code = `
alias I = ${type};
${bindings}
${lanes === 1 ? "" : `var<workgroup> befores: array<u32, ${size}>;`}
@compute @workgroup_size(${size})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let own = (group.y * ${workgroups[0]}u + group.x) * ${each}u + local / ${lanes}u;
  let token = min(own, ${tokens - 1}u);
  let beside = token / ${width}u;
  let near = ${load("ids", "beside")};
  let mine = near${width === 4 ? "[token % 4u]" : ""};
  let key = ${keyOf("mine", sizes)};
  var before = I(); // tokens of lower ids, and earlier ones of this
  for (var at = local % ${lanes}u; at < ${vectors}u; at += ${lanes * ahead}u) {
    ${
    upTo.map((k) => {
      const place = k === 0 ? "at" : `min(at + ${k * lanes}u, ${vectors - 1}u)`;
      return `let at${k} = ${place}; let ids${k} = ${load("ids", `at${k}`)};`;
    }).join("\n    ")
  }
    ${
    upTo.map((k) =>
      `{ let keys = ${keyOf(`ids${k}`, sizes).replace(/(\d+u)/g, "I($1)")};
      let found = (keys < I(key)) | ((keys == I(key)) & (I(at${k} * ${width}u)${beside} < I(token)));
      before += select(I(), I(1u), found)${k === 0 ? "" : ` * select(0u, 1u, at + ${k * lanes}u < ${vectors}u)`}; }`
    ).join("\n    ")
  }
  }
  ${
    lanes === 1 ? `let place = ${sum};\n  if (own >= ${tokens}u) { return; }` : `befores[local] = ${sum};
  workgroupBarrier();
  if (local % ${lanes}u != 0u || own >= ${tokens}u) { return; }
  var place = befores[local];
  ${Array.from({ length: lanes - 1 }, (_, k) => `place += befores[local + ${k + 1}u];`).join(" ")}`
  }
  sorted[place] = key;
  sorted[${tokens}u + place] = token;
}
`;
  return { code, workgroups, ...bound(places.slice(0, 2)) };
}

function layOut({ tokens, vocabulary }: SortSizes) {
  const bits = Math.ceil(Math.log2(vocabulary + 1));
  const digits = Math.max(1, Math.ceil(bits / mostDigitBits)), digitBits = Math.max(8, Math.ceil(bits / digits));
  const blocks = Math.ceil(tokens / block), each = Math.ceil(blocks / mostGroups);
  return { digits, digitBits, bins: 2 ** digitBits, each, groups: Math.ceil(blocks / each) };
}

/** Counts of the last digit, then for each digit the tokens to their places, and the counts of the next one. */
function digitPasses(sizes: SortSizes, [ids, sorted, half, counts]: readonly number[]): readonly Pass[] {
  const { tokens } = sizes, { digits, digitBits, bins, each, groups } = layOut(sizes);
  const opening = `
const tokens = ${tokens}u;
@compute @workgroup_size(${block})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {`;
  const digitOf = (key: string, digit: number) => `((${key} >> ${digit * digitBits}u) & ${bins - 1}u)`;
  const ownBins = Array.from({ length: bins / block }, (_, k) => `local + ${k * block}u`);
  const count = `
@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(1) var<storage, read_write> counts: array<u32>;
var<workgroup> own: array<atomic<u32>, ${bins}>;
${opening}
  for (var turn = 0u; turn < ${each}u; turn++) {
    let at = (group.x * ${each}u + turn) * ${block}u + local;
    if (at < tokens) { atomicAdd(&own[${digitOf(keyOf("ids[at]", sizes), 0)}], 1u); }
  }
  workgroupBarrier();
  ${ownBins.map((bin) => `counts[group.x * ${bins}u + ${bin}] = atomicLoad(&own[${bin}]);`).join("\n  ")}
  for (var later = ${groups}u; later < ${digits * groups}u; later += ${groups}u) {
    ${ownBins.map((bin) => `counts[(later + group.x) * ${bins}u + ${bin}] = 0u;`).join("\n    ")}
  }
}
`;
  const passes: Pass[] = [{ code: count, workgroups: [groups, 1, 1], operands: [ids, counts] }];
  for (let digit = 0; digit < digits; digit++) {
    // The last one writes the result, the others by turns.
    const target = (digits - digit) % 2 === 1 ? sorted : half, source = target === sorted ? half : sorted;
    const first = digit === 0, last = digit === digits - 1, ahead = 8;
    const scatter = `
@group(0) @binding(0) var<storage, read> source: array<u32>;
@group(0) @binding(1) var<storage, read_write> target_: array<u32>;
@group(0) @binding(2) var<storage, read_write> counts: array<atomic<u32>>;
var<workgroup> places: array<u32, ${bins}>; // where the next token of a digit goes
var<workgroup> sums: array<u32, ${block}>;
var<workgroup> digits: array<u32, ${block}>;
var<workgroup> digitVectors: array<vec4u, ${block / 4}>;
fn countOf(row: u32, bin: u32) -> u32 {
  return select(0u, atomicLoad(&counts[${digit * groups * bins}u + min(row, ${
      groups - 1
    }u) * ${bins}u + bin]), row < ${groups}u);
}
${opening}
  ${ownBins.map((_, k) => `var whole${k} = 0u; var before${k} = 0u;`).join(" ")}
  for (var row = 0u; row < ${groups}u; row += ${ahead}u) {
    ${
      Array.from({ length: ahead }, (_, a) =>
        ownBins.map((bin, k) => `let count${a}_${k} = countOf(row + ${a}u, ${bin});`).join(" ")).join("\n    ")
    }
    ${
      Array.from({ length: ahead }, (_, a) =>
        ownBins.map((_, k) =>
          `whole${k} += count${a}_${k}; before${k} += select(0u, count${a}_${k}, row + ${a}u < group.x);`
        ).join(" ")).join("\n    ")
    }
  }
  var lower = 0u; // tokens of all digits before
  ${
      ownBins.map((bin, k) =>
        `{
    var total = whole${k};
    sums[local] = total;
    workgroupBarrier();
    for (var step = 1u; step < ${block}u; step *= 2u) {
      let other = select(0u, sums[max(local, step) - step], local >= step);
      workgroupBarrier();
      total += other;
      sums[local] = total;
      workgroupBarrier();
    }
    places[${bin}] = lower + total - whole${k} + before${k};
    lower += sums[${block - 1}u];
    workgroupBarrier();
  }`
      ).join("\n  ")
    }
  for (var turn = 0u; turn < ${each}u; turn++) {
    let at = (group.x * ${each}u + turn) * ${block}u + local;
    let here = at < tokens;
    let place = min(at, tokens - 1u);
    let key = ${first ? keyOf("source[place]", sizes) : "source[place]"};
    let token = ${first ? "place" : "source[tokens + place]"};
    let digit = select(${bins}u, ${digitOf("key", digit)}, here);
    digits[local] = digit;
    workgroupBarrier();
    if (local < ${block / 4}u) {
      let k = local * 4u;
      digitVectors[local] = vec4u(digits[k], digits[k + 1u], digits[k + 2u], digits[k + 3u]);
    }
    workgroupBarrier();
    var all = 0u;
    var before = 0u;
    for (var other = 0u; other < ${block / 4}u; other += 4u) {
      ${
      Array.from({ length: 4 }, (_, k) =>
        `{ let same = select(vec4u(), vec4u(1u), digitVectors[other + ${k}u] == vec4u(digit));
        let earlier = same * select(vec4u(), vec4u(1u), vec4u((other + ${k}u) * 4u) + vec4u(0u, 1u, 2u, 3u) < vec4u(local));
        all += (same.x + same.y) + (same.z + same.w);
        before += (earlier.x + earlier.y) + (earlier.z + earlier.w); }`).join("\n      ")
    }
    }
    let to = places[min(digit, ${bins - 1}u)] + before;
    workgroupBarrier();
    if (here) {
      target_[to] = key;
      target_[tokens + to] = token;
      if (before + 1u == all) { places[digit] = to + 1u; } // the last of its digit here
      ${
      last
        ? ""
        : `atomicAdd(&counts[${(digit + 1) * groups * bins}u + to / ${each * block}u * ${bins}u + ${
          digitOf("key", digit + 1)
        }], 1u);`
    }
    }
    workgroupBarrier();
  }
}
`;
    passes.push({ code: scatter, workgroups: [groups, 1, 1], operands: [first ? ids : source, target, counts] });
  }
  return passes;
}
