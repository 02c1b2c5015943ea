/** Rotary tables against InternEvo's. */
import { assertEquals } from "@std/assert";
import { compare } from "../kernels/testing.ts";
import { dynamicNtkBase, rotaryTables } from "../kernels/rope/mod.ts";
import { readGoldenJson } from "./golden_dir.ts";

interface Case {
  class: string;
  dim: number;
  base: number;
  seqlen: number;
  max_position_embeddings?: number;
  scaling_factor?: number;
  cos: number[][];
  sin: number[][];
}
const cases = readGoldenJson<{ rope_tables: Case[] }>("internevo", "models", "model_structure.json").rope_tables;

/** Base of a case, or why it is not supported. */
function baseOf(golden: Case): number | string {
  const { base, dim: headDim, seqlen: length, max_position_embeddings: maxPositions, scaling_factor: factor } = golden;
  switch (golden.class) {
    case "RotaryEmbedding":
      return base;
    case "DynamicNTKScalingRotaryEmbedding":
      return dynamicNtkBase({ base, headDim, length, maxPositions: maxPositions!, factor: factor! });
    default:
      return `no model type selects ${golden.class}`;
  }
}

cases.forEach((golden, index) => {
  const { dim: headDim, seqlen: length } = golden, base = baseOf(golden);
  const ignore = typeof base === "string";
  if (ignore) console.log(`skipped: model_structure.json rope_tables[${index}]: ${base}`);
  Deno.test({
    name: `rotaryTables() follows model_structure.json rope_tables[${index}], ${golden.class}`,
    ignore,
    fn() {
      const tables = rotaryTables({ headDim, base: base as number, length });
      // Powers of libraries differ in the last bit; an angle of `length` radians carries that on.
      const tolerance = 2 ** -24 * Math.max(2, 2 * length);
      for (
        const [name, table, rows] of [["cos", tables.cosine, golden.cos], ["sin", tables.sine, golden.sin]] as const
      ) {
        assertEquals(rows.length, length);
        assertEquals(compare(name, table, rows.flat(), tolerance).fault, undefined);
      }
    },
  });
});
