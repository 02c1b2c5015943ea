import { assertEquals, assertThrows } from "@std/assert";
import { parameterGroups } from "./parameter_groups.ts";

const parameters = [
  { name: "embedding" },
  { name: "norm", float32: true },
  { name: "gate", float32: true },
  { name: "expert.0", expert: true },
  { name: "rope", frozen: true },
];

Deno.test("parameterGroups() sorts by kind, keeps order and leaves frozen parameters out", () => {
  const groups = parameterGroups(parameters, { weightDecay: 0.1, numExperts: 2, expertParallelSize: 2 });
  assertEquals(groups.map((g) => [g.key, g.partition, g.reduce, g.weightDecay, g.parameters.map((p) => p.name)]), [
    ["0_default", "zero1", "data", 0.1, ["embedding"]],
    ["1_fp32", "zero1", "data", 0.1, ["norm", "gate"]],
    ["2_moe_ep_size_2", "expert_data", "expert_data", 0.1, ["expert.0"]],
  ]);
});

Deno.test("parameterGroups() keeps empty groups and reduces over weight data in isp", () => {
  const groups = parameterGroups([{ name: "a" }], { weightDecay: 0, tensorMode: "isp" });
  assertEquals(groups.map((g) => [g.name, g.reduce, g.parameters.length]), [
    ["default", "weight_data", 1],
    ["fp32", "weight_data", 0],
  ]);
});

Deno.test("parameterGroups() refuses an expert in a model without experts", () => {
  assertThrows(() => parameterGroups(parameters, { weightDecay: 0 }), TypeError, "expert.0");
});
