/**
 * Ranks with different data in one thread: reference trainings followed by 2 and 4 of them, with the optimizer's state
 * divided in every way there is.
 */
import { assert, assertEquals } from "@std/assert";
import { openBackend } from "../src/backend/open.ts";
import { verify, type VerifyReport } from "../src/train/verify.ts";
import { goldenPath } from "./golden_dir.ts";
import { together } from "./worlds.ts";

function replay(name: string, nproc: number, set: readonly string[]): Promise<VerifyReport[]> {
  return together(nproc, async (world) => {
    using backend = await openBackend("cpu");
    return await verify(goldenPath("hf", name), { backend, nproc, world, set });
  });
}

const zero = "hybrid_zero_optimizer", small = `${zero}.reduce_bucket_size=5000`;
const ways: Record<string, string[]> = {
  "state on every rank": ["parallel.zero1.size=1"],
  "state dealt out, small buckets, overlapped": [
    small,
    `${zero}.all_gather_size=30000`,
    `${zero}.overlap_sync_grad=true`,
    `${zero}.overlap_sync_param=true`,
  ],
  "every parameter split": [`${zero}.use_split_tensor_optim=true`, small],
};
const cases: [string, number, string, string[]][] = [
  ...Object.entries(ways).map(([way, set]) => ["llama_gqa", 2, way, set] as [string, number, string, string[]]),
  ["llama_gqa", 4, "every parameter split, overlapped", [
    ...ways["every parameter split"]!,
    `${zero}.overlap_sync_grad=true`,
    `${zero}.overlap_sync_param=true`,
  ]],
  ["gemma", 3, "a rank too many, and a tied head", []],
];
for (const [name, ranks, way, set] of cases) {
  Deno.test(`${ranks} data-parallel ranks follow hf/${name}: ${way}`, async () => {
    const [first, ...others] = await replay(name, ranks, set);
    assert(first!.pass, JSON.stringify(first));
    for (const report of others) assertEquals(report, first, "all ranks come to the same");
  });
}
