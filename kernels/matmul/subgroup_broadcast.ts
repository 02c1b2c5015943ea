/**
 * v3, for rasterisers in software: what costs there is loads (workgroup memory as much as any buffer; a `vec4f` half as
 * much per element), while a broadcast within the subgroup is free. So a subgroup is a workgroup, its lanes lie along
 * the columns, each lane keeps 16 or 32 rows x 4 columns of C, and A is loaded once by the subgroup, spread over its
 * lanes, and broadcast element by element. No workgroup memory, no barriers; 4 terms of the sums are unrolled.
 *
 * Where the device reads textures for less (`../images.ts`), A and B come from there. At 1024³ llvmpipe on a Zen 3 core
 * gives 25 to 27 GFLOP/s with that, 2.7 without, 0.5 with v2; of numbers in registers alone it multiplies and adds 45.
 */
import { type DeviceTraits, type Operand, type Pass, spread } from "../kernel.ts";
import { storage } from "../storage.ts";
import { subgroupPrelude } from "./dialect.ts";
import { epilogueNames, type MatmulShape, placesOf } from "./shape.ts";
import { elementTypes, finisher, loader, panelsOf, upTo } from "./text.ts";

/** Terms of a sum between two readings of it: more make longer texts, and no difference. */
const depth = 4;
/** Tiles of a band: as many neighbours write each row of C in turn, so that its cache lines come in order. */
const mostInBand = 4;

/** @param traits of a device with subgroups of 4 to 64 lanes */
export function subgroupBroadcastPasses(
  shape: MatmulShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
): Pass[] {
  const lanes = traits.subgroupSize;
  const { m, n, k, batch } = shape;
  // Taller tiles read less and compile twice as long, which a large product repays.
  const rows = Math.max(m * n * k * batch < 2 ** 26 || m <= 64 ? 16 : 32, lanes), columns = 4 * lanes;
  const rowTiles = Math.ceil(m / rows), columnTiles = Math.ceil(n / columns);
  const total = rowTiles * columnTiles * batch;
  let band = mostInBand;
  while (columnTiles % band !== 0) band--;
  const workgroups = spread(total);
  const { a, b } = panelsOf(shape);
  const rest = k % depth !== 0; // the last terms, short of a block, are guarded: in a block of their own
  const places = placesOf(operands, ["a", "b", ...epilogueNames(shape)]);

  // The block of A, rows x depth elements, as vec4f spread over `loadsA` loads of all lanes.
  const loadsA = rows * depth / 4 / lanes;
  const alongDepth = a.contiguous === "depth";
  const loadA = (index: number, suffix: string) => {
    const at = `(${index * lanes}u + lane)`;
    return alongDepth
      ? `let a${index} = loadA${suffix}(firstRow + ${at} / ${depth / 4}u, k0 + ${at} % ${depth / 4}u * 4u, z);`
      : `let a${index} = loadA${suffix}(firstRow + ${at} % ${rows / 4}u * 4u, k0 + ${at} / ${rows / 4}u, z);`;
  };
  const elementA = (row: number, p: number) => {
    const at = alongDepth ? row * (depth / 4) + (p >> 2) : p * (rows / 4) + (row >> 2);
    const component = alongDepth ? p & 3 : row & 3;
    return `subgroupBroadcast(a${Math.floor(at / lanes)}[${component}], ${at % lanes}u)`;
  };
  const loadB = (p: number, suffix: string) => {
    if (b.contiguous === "outer") return `let b${p} = loadB${suffix}(column, k0 + ${p}u, z);`;
    if (p % 4 !== 0) return ""; // four terms of four columns at once, turned
    const quads = upTo(4).map((j) => `let q${p + j} = loadB${suffix}(column + ${j}u, k0 + ${p}u, z);`);
    const turned = upTo(4).map((i) => `let b${p + i} = vec4f(${upTo(4).map((j) => `q${p + j}[${i}]`).join(", ")});`);
    return [...quads, ...turned].join("\n    ");
  };
  // Row by row: a row's sums stay in registers for the whole depth.
  const block = (suffix: string) => `
    ${upTo(loadsA).map((index) => loadA(index, suffix)).join("\n    ")}
    ${upTo(depth).map((p) => loadB(p, suffix)).join("\n    ")}
    ${
    upTo(rows).flatMap((row) => upTo(depth).map((p) => `s${row} = fma(vec4f(${elementA(row, p)}), b${p}, s${row});`))
      .join("\n    ")
  }`;

  const stored = storage(traits, places.map((place) => operands[place]), elementTypes(shape), 1, ["a", "b"]);
  const code = `${stored.directives}${subgroupPrelude(traits)}
${stored.bindings}
${loader("loadA", a, stored, false)}
${loader("loadB", b, stored, false)}
${rest ? loader("loadALast", a, stored, true) + "\n" + loader("loadBLast", b, stored, true) : ""}
${finisher(shape, { rows, columns }, stored)}

@compute @workgroup_size(${lanes})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(subgroup_invocation_id) lane: u32) {
  let id = group.y * ${workgroups[0]}u + group.x;
  if (id >= ${total}u) { return; }
  // Neighbouring groups share a band of columns: B's part stays in the cache while A's rows pass.
  let firstRow = id / ${band}u % ${rowTiles}u * ${rows}u;
  let column = (id / ${rowTiles * band}u % ${columnTiles / band}u * ${band}u + id % ${band}u) * ${columns}u + lane * 4u;
  let z = id / ${rowTiles * columnTiles}u;
  ${upTo(rows).map((row) => `var s${row} = vec4f();`).join(" ")}
  ${
    k >= depth
      ? `for (var k0 = 0u; k0 < ${k - k % depth}u; k0 += ${depth}u) {${block("")}
  }`
      : ""
  }
  ${rest ? `{ let k0 = ${k - k % depth}u;${block("Last")}\n  }` : ""}
  ${upTo(rows).map((row) => `finish(firstRow + ${row}u, column, z, s${row});`).join("\n  ")}
}
`;
  return [{ code, workgroups, ...stored.bound(places) }];
}
