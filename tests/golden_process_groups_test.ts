/** The mesh's groups and the stages' layers against InternEvo's. */
import { assertEquals, assertMatch, assertThrows } from "@std/assert";
import { createMesh, type Mesh, type Mode, modes } from "../src/parallel/mesh.ts";
import { partitionLayers } from "../src/parallel/stages.ts";
import { readGoldenJson } from "./golden_dir.ts";
import { type RecordedLayout, sizesOf } from "./recorded_groups.ts";

interface Case extends RecordedLayout {
  result?: {
    groups: Record<string, number[][] | { groups: number[][]; ranks_without_group: number[] }>;
    log_ranks: number[];
  };
  message?: string;
}
interface Partition {
  num_layers: number;
  pipeline: number;
  chunks: number;
  result?: [number, number][][];
  message?: string;
}
const golden = readGoldenJson<{ cases: Case[]; config_spellings: Case[]; partition_uniform: Partition[] }>(
  "internevo",
  "process_groups.json",
);

function meshes(test: Case): Mesh[] {
  const { world, num_experts = 1 } = test, { config, sizes, fsdp } = sizesOf(test);
  return Array.from({ length: world }, (_, rank) =>
    createMesh({
      sizes,
      rank,
      tensorMode: config.parallel.tensor.mode,
      numExperts: num_experts,
      fsdp,
    }));
}

/** The order in which groups are created has no meaning. */
const sorted = (groups: number[][]) => groups.toSorted((a, b) => a[0]! - b[0]!);

Deno.test("createMesh() makes InternEvo's process groups", () => {
  let compared = 0;
  for (const [index, test] of [...golden.cases, ...golden.config_spellings].entries()) {
    const name = `case ${index}: world ${test.world}, ${JSON.stringify(test.parallel)}, experts ${
      test.num_experts ?? 1
    }`;
    if (test.result === undefined) {
      if (test.parallel.gqa) {
        console.log(`skipped ${name}: a check of attention heads, which belong to the model`);
      } else if (/'int' object/.test(test.message ?? "")) {
        meshes(test); // ⚠ a number stands for the size of any parallel section
      } else assertMatch(assertThrows(() => meshes(test), Error).message, /(parallel|num_experts)[^:]*: \d/, name);
      continue;
    }
    const all = meshes(test);
    for (const [label, expected] of Object.entries(test.result.groups)) {
      const mode = (label === "ZERO1" ? "zero" : label.toLowerCase()) as Mode;
      if (!modes.includes(mode)) {
        console.log(`skipped ${label} of ${name}: ranks that share key and value heads are found from the heads`);
        continue;
      }
      if (!Array.isArray(expected) || expected.flat().length !== test.world) {
        console.log(`skipped ${label} of ${name}: it leaves ranks without a group`);
        continue;
      }
      const what = `${label} of ${name}`;
      assertEquals(all[0]!.groups(mode), sorted(expected), what);
      for (const ranks of expected) {
        ranks.forEach((rank, place) => {
          assertEquals(all[rank]!.group(mode), { mode, ranks, index: place }, what);
          assertEquals([all[rank]!.size(mode), all[rank]!.index(mode)], [ranks.length, place], what);
        });
      }
      compared++;
    }
    assertEquals(all.filter(({ logs }) => logs).map(({ rank }) => rank), test.result.log_ranks, name);
  }
  console.log(`${compared} modes of ${golden.cases.length + golden.config_spellings.length} layouts`);
});

Deno.test("partitionLayers() deals layers out as InternEvo does", () => {
  for (const { num_layers, pipeline, chunks, result } of golden.partition_uniform) {
    const partition = () => partitionLayers(num_layers, { stages: pipeline, chunks });
    const name = `${num_layers} layers, ${pipeline} stages, ${chunks} chunks`;
    if (result === undefined) assertThrows(partition, RangeError, "Cannot divide", name);
    else assertEquals(partition().map((ranges) => ranges.map(({ first, end }) => [first, end])), result, name);
  }
});
