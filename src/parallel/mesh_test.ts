import { assert, assertEquals, assertThrows } from "@std/assert";
import type { ParallelSizes } from "../config/parallel_sizes.ts";
import { createMesh, type MeshOptions, modes, singleRank } from "./mesh.ts";

const ones: ParallelSizes = { world: 1, tp: 1, pp: 1, dp: 1, wp: 1, wdp: 1, zero1: 1, ep: 1, edp: 1, etp: 1, ewp: 1 };
const mesh = (sizes: Partial<ParallelSizes>, options: Partial<MeshOptions> = {}) =>
  createMesh({ sizes: { ...ones, ...sizes }, rank: 0, ...options });

Deno.test("singleRank is alone in every mode, and logs", () => {
  for (const mode of modes) assertEquals(singleRank.group(mode), { mode, ranks: [0], index: 0 });
  assert(singleRank.logs);
});

Deno.test("createMesh() divides attention inside tensor groups, heads or context first", () => {
  const sizes = { world: 8, tp: 8, wdp: 8, etp: 8 };
  const headFirst = mesh(sizes, { sequence2D: { headSize: 2, contextSize: 4, headFirst: true } });
  assertEquals(headFirst.groups("head"), [[0, 1], [2, 3], [4, 5], [6, 7]]);
  assertEquals(headFirst.groups("context"), [[0, 2, 4, 6], [1, 3, 5, 7]]);
  const contextFirst = mesh(sizes, { sequence2D: { headSize: 2, contextSize: 4, headFirst: false } });
  assertEquals(contextFirst.groups("context"), [[0, 1, 2, 3], [4, 5, 6, 7]]);
  assertEquals(contextFirst.groups("head"), [[0, 4], [1, 5], [2, 6], [3, 7]]);
});

Deno.test("createMesh() gives experts groups over weight groups under isp, over tensor groups else", () => {
  const isp = mesh({ world: 16, tp: 2, dp: 8, wp: 2, wdp: 8, zero1: 8, ewp: 2, ep: 4, edp: 2, etp: 2 }, {
    tensorMode: "isp",
    numExperts: 4,
  });
  assertEquals(isp.groups("expert_weight")[1], [2, 3]);
  assertEquals(isp.groups("expert"), [[0, 2, 4, 6], [1, 3, 5, 7], [8, 10, 12, 14], [9, 11, 13, 15]]);
  assertEquals(isp.groups("expert_data")[1], [1, 9]);
  assertEquals(isp.size("expert_tensor"), 1);

  const noTp = mesh({ world: 8, tp: 2, dp: 4, wdp: 8, zero1: 2, etp: 1, ep: 8, edp: 1 }, { numExperts: 8 });
  assertEquals(noTp.groups("expert"), [[0, 1, 2, 3, 4, 5, 6, 7]]);
  assertEquals([noTp.size("expert_tensor"), noTp.size("expert_data")], [1, 1]);
});

Deno.test("createMesh() cuts nettest groups in blocks, the last as large as it comes", () => {
  const { groups } = mesh({ world: 40, dp: 40, wdp: 40, edp: 40 });
  assertEquals(groups("nettest").map(({ length }) => length), [32, 8]);
});

Deno.test("createMesh() refuses sizes that do not multiply to the world, and ranks outside it", () => {
  assertThrows(() => mesh({ world: 8, tp: 3, dp: 2, wdp: 8 }), RangeError, "tensor (3) × data (2) × pipeline (1) is 6");
  assertThrows(() => mesh({ world: 4, dp: 4, wdp: 4, zero1: 3 }), RangeError, "zero (3)");
  assertThrows(() => mesh({}, { rank: 1 }), RangeError, "rank 1 is not one of 0 to 0");
});
