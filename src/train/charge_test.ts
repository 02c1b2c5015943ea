/** What overlaps in a prediction: by hand for the phases between ranks, and by whole records. */
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { resolveConfig } from "../config/mod.ts";
import type { Segment } from "../graph/plan.ts";
import type { GatherOverlapPlan, OverlapPlan } from "../optimizer/overlap.ts";
import type { OwnedPart, Parcel, ZeroPlan } from "../optimizer/zero.ts";
import { moduleNames } from "../models/registry.ts";
import type { Mesh } from "../parallel/mesh.ts";
import type { Charges, Machines } from "./charge.ts";
import { chargeSync } from "./charge_sync.ts";
import { devices, links } from "./hardware.ts";
import { predict } from "./predict.ts";
import { tinyRecord } from "./_testing.ts";

/** Two ranks with an even share each of so many elements. */
function parcelOf(name: string, elements: number): Parcel {
  const half = elements / 2,
    part = (owner: number): OwnedPart => (
      { name, owner, begin: owner * half, end: (owner + 1) * half }
    );
  return { parts: [part(0), part(1)], elements, counts: [half, half] };
}
const buckets = ["a", "b", "c"].map((name) => parcelOf(name, 2));
const zero: ZeroPlan[] = [
  { reduce: "data", partition: "zero", division: [], buckets, gathers: [{ ...parcelOf("all", 6), half: false }] },
];

/** An element takes 1 to read back, 2 between ranks, 1/2 to upload; an instruction takes 5. */
const charges = {
  turns: 1,
  turnsAtEnds: 1,
  read: (bytes: number) => bytes / 4,
  upload: (bytes: number) => bytes / 8,
  collective: (_operator: unknown, _mode: unknown, bytes: number) => bytes / 2,
  segment: ({ instructions }: Segment) => ({ device: 5 * instructions.length }),
} as unknown as Charges;
const mesh = { size: () => 2, index: () => 0 } as unknown as Mesh;
const instructions = Array(4);
const plan = { segments: { "forward 0": { instructions }, "backward 0": { instructions } } } as unknown as Parameters<
  typeof chargeSync
>[0]["plan"];

Deno.test("chargeSync() reads, sends and uploads buckets as the synchronizer does, three under way", () => {
  // Read to 2, 4, 6; sums done at 6, 10, 14; uploads of half a bucket each: 6.5, 10.5, 14.5. Gather: 3, then 15, then 1.5.
  const { gradients, parameters, sent } = chargeSync({
    plan,
    zero,
    overlap: undefined,
    gatherOverlap: undefined,
    mesh,
    charges,
  });
  assertEquals([gradients, parameters, sent], [14.5, 16.5, 3 * 4 + 12]);
});

Deno.test("chargeSync() credits gradients that travel while the last backward pass goes on, and no more", () => {
  const overlap: OverlapPlan = {
    segment: "backward 0",
    cuts: [0, 1, 2],
    buckets: buckets.map((bucket) => ({ group: 0, bucket })),
    late: [],
  };
  // The device: 5, then from each read-back on 5 more: 12, 19, 26, where the last sum is over at 25 and put at 25.5.
  const { gradients, parameters } = chargeSync({ plan, zero, overlap, gatherOverlap: undefined, mesh, charges });
  assertEquals([gradients, parameters], [26 - 4 * 5, 16.5], "three read-backs of 2, during which the device waits");
});

Deno.test("chargeSync() credits parameters that come while the first forward pass goes on, each where it is read", () => {
  const gathers = ["a", "b"].map((name) => parcelOf(name, 2));
  const gatherOverlap: GatherOverlapPlan = {
    passes: new Map([["forward 0", { cuts: [1], groups: [0] }]]),
    before: [0],
  };
  // Read back to 1 and 2; there at 5 and 9. The pass begins at 5.5, with a's upload, and its first half is over at 15.5.
  const { parameters } = chargeSync({
    plan,
    zero: [{ ...zero[0]!, gathers: gathers.map((parcel) => ({ ...parcel, half: false })) }],
    overlap: undefined,
    gatherOverlap,
    mesh,
    charges,
  });
  assertEquals(parameters, 25.5 - 4 * 5, "what it waits for a");
});

const machines = (changes: Partial<Machines> = {}): Machines => ({
  world: 4,
  device: devices.h200!,
  link: links["1GbE"]!,
  perHost: 1,
  ...changes,
});
const record = (sections: Record<string, object>) =>
  resolveConfig({
    model_type: "INTERNLM2",
    adam: { lr: 1e-3 },
    ckpt: { enable_save_ckpt: false },
    ...sections,
    model: {
      num_layers: 4,
      hidden_size: 512,
      num_attention_heads: 8,
      vocab_size: 1000,
      mlp_ratio: 8 / 3,
      multiple_of: 256,
      ...sections.model,
    },
    data: { seq_len: 1024, micro_bsz: 4, micro_num: 2, total_steps: 10, ...sections.data },
  }, { worldSize: 4, modelTypes: moduleNames() });

Deno.test("predict() credits overlap_sync_grad, at most with the last backward pass", () => {
  const of = (overlap_sync_grad: boolean) =>
    predict(record({ hybrid_zero_optimizer: { overlap_sync_grad, reduce_bucket_size: 1 << 20 } }), machines());
  const apart = of(false), overlapped = of(true);
  assertEquals(overlapped.parts.pipeline, apart.parts.pipeline);
  const saved = apart.parts.gradients - overlapped.parts.gradients;
  assert(saved > 0 && saved <= apart.stages[0]!.backward, `${saved} of ${apart.stages[0]!.backward}`);
});

Deno.test("predict() credits weights gathered ahead under isp, at most with all that does not wait for them", () => {
  const of = (overlap: boolean) =>
    predict(
      record({
        parallel: { tensor: { size: 1, mode: "isp" }, weight: { size: 4, overlap, launch_allgather_before: "wqkv" } },
      }),
      machines({ link: links["10GbE"]! }),
    );
  const apart = of(false), ahead = of(true);
  assert(ahead.step < apart.step, `${ahead.step} and ${apart.step}`);
  assertEquals(ahead.traffic, apart.traffic);
  // What the link carries cannot be hidden behind itself.
  const wire = ahead.traffic.weight! / links["10GbE"]!.bandwidth;
  assert(ahead.parts.pipeline > wire, `${ahead.parts.pipeline} and ${wire} on the wire`);
});

Deno.test("predict() charges dropless experts for an even load, whatever room there is, and states the bound", () => {
  const of = (load_bound: number | null) =>
    predict(
      record({
        model_type: "MIXTRALMOE" as unknown as object,
        model: { num_experts: 4, moe_type: "Dropless" },
        parallel: { expert: { size: 4, load_bound } },
      }),
      machines(),
    );
  const [least, some, most] = [of(1), of(2), of(null)];
  assertEquals(some.traffic, least.traffic);
  assertEquals(most.traffic, least.traffic, "the same rows travel");
  // The room is read back whole on the way home, nothing else grows with it.
  assert(most.step < 1.3 * least.step, `${most.step} and ${least.step}`);
  assertAlmostEquals(least.stepAtMost ?? least.step, least.step, 1e-12);
  assert(some.stepAtMost! > some.step && most.stepAtMost! > some.stepAtMost!);
});

Deno.test("predict() has stages that share a device wait for it", () => {
  const config = tinyRecord({ model: { num_layers: 4 }, parallel: { pipeline: { size: 4 } } }, { worldSize: 4 });
  const slow = { ...devices.h200!, dispatch: 1e-3, switching: 0 };
  const of = (perDevice: number) => predict(config, machines({ device: slow, perDevice, link: links.loopback! }));
  const [alone, together] = [of(1), of(4)];
  const busy = alone.stages.reduce((sum, { forward, backward }) => sum + forward + backward, 0) * config.data.micro_num;
  assert(together.parts.pipeline > alone.parts.pipeline);
  assertAlmostEquals(together.parts.pipeline / busy, 1, 0.1, "nothing but the device's work");
  assertEquals(together.deviceMemory, alone.stages.reduce((sum, { memory }) => sum + memory.total, 0));
  assertEquals(together.memory, alone.memory);
});
