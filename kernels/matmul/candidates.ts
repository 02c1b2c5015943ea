/** The forms of a matrix product that a device may prefer, the one known to be best first. */
import { sizeClass } from "../choices.ts";
import type { DeviceTraits, Operand, Pass } from "../kernel.ts";
import { subgroupMatrix } from "../matrix_unit.ts";
import { matrixTiles, matrixTiling, matrixTilingOf, matrixUnitPasses } from "./matrix_units.ts";
import type { MatmulShape } from "./shape.ts";
import { subgroupBroadcastPasses } from "./subgroup_broadcast.ts";
import { type Tiling, tilingFor, tilingShapes, workgroupTilePasses } from "./workgroup_tiles.ts";

/** Products that share a choice: alike in transposes, types and, roughly, sizes. */
export function questionOf(
  { m, n, k, batch, transposeA, transposeB, accumulate, types, split, packed }: MatmulShape,
): string {
  const { a = "f32", b = "f32", c = "f32" } = types;
  const sizes = [...(batch > 1 ? [batch] : []), m, n, k].map(sizeClass).join(" x ");
  return `matmul.${transposeA ? "t" : "n"}${transposeB ? "t" : "n"} ${a} ${b} ${c}${split ? " split" : ""}${
    packed ? " packed" : ""
  }` +
    `${accumulate ? " added" : ""} ${sizes}`;
}

export type Forms = ReadonlyMap<string, () => Pass[]>;

/** A tile, with the depth in at most `splits` parts. */
function tiled(tile: Omit<Tiling, "splits" | "partDepth">, k: number, splits: number): Tiling {
  const partDepth = Math.ceil(k / splits / tile.depth) * tile.depth;
  return { ...tile, splits: Math.ceil(k / partDepth), partDepth };
}

function tileForms(shape: MatmulShape, operands: readonly Operand[], traits: DeviceTraits): Forms {
  const shipped = tilingFor(shape, traits), forms = new Map<string, () => Pass[]>();
  const add = (tiling: Tiling) => {
    const { rows, columns, blockRows, blockColumns, depth, splits } = tiling;
    const name = `tiles ${rows} x ${columns} x ${depth} by ${blockRows} x ${blockColumns}${
      splits > 1 ? `, ${splits} parts` : ""
    }`;
    if (!forms.has(name)) forms.set(name, () => workgroupTilePasses(shape, operands, traits, tiling));
  };
  add(shipped);
  // Where workgroup memory is as slow as any other, the size of a tile matters little, and texts take long to compile.
  for (const tile of traits.software ? tilingShapes.filter(({ rows, columns }) => rows === columns) : tilingShapes) {
    // A tile reaches past C by less than half.
    if ((tile.rows > 32 && shape.m <= tile.rows / 2) || (tile.columns > 32 && shape.n <= tile.columns / 2)) continue;
    add(tiled(tile, shape.k, shipped.splits));
    if (shipped.splits > 1) add(tiled(tile, shape.k, 1));
  }
  return forms;
}

function matrixForms(
  shape: MatmulShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
  { parts, splits }: { readonly parts: 1 | 2; readonly splits: number },
): Forms {
  const tilings = [
    matrixTilingOf(shape, parts, splits),
    ...matrixTiles.map((tile) => matrixTiling(shape, tile, parts, splits)),
  ];
  return new Map(tilings.map((tiling) =>
    [
      `units ${tiling.rows} x ${tiling.columns} x ${tiling.depth}`,
      () => matrixUnitPasses(shape, operands, traits, subgroupMatrix, tiling),
    ] as const
  ));
}

/**
 * @param units whether the product may go through matrix units that the device has, and in how many parts
 * @param splits parts of the depth for whose sums there is scratch
 */
export function formsOf(
  shape: MatmulShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
  { units, splits }: { readonly units: 1 | 2 | undefined; readonly splits: number },
): Forms {
  const { software, subgroupSize } = traits;
  if (units !== undefined) return matrixForms(shape, operands, traits, { parts: units, splits });
  const tiles = tileForms(shape, operands, traits);
  if (!software || subgroupSize < 4 || subgroupSize > 64) return tiles;
  return new Map([["subgroups", () => subgroupBroadcastPasses(shape, operands, traits)] as const, ...tiles]);
}
