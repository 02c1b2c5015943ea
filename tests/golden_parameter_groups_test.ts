/** The optimizer's parameter groups against InternEvo's. */
import { assertEquals } from "@std/assert";
import { parameterGroups } from "../src/optimizer/parameter_groups.ts";
import { readGoldenJson } from "./golden_dir.ts";

interface Group {
  name: string;
  optimizer_mode: string;
  weight_decay: number;
  moe: boolean;
  params: string[];
}
const golden = readGoldenJson<{
  param_groups: {
    model_type: string;
    mode: string;
    dtype: string;
    result: { groups: Group[]; param_dtype: Record<string, string> };
  }[];
}>("internevo", "models", "model_structure.json");

/** The gate is shared by all experts; everything under `experts` belongs to one. */
const isExpert = (name: string) => name.includes(".experts.");

golden.param_groups.forEach((entry, index) => {
  const { groups, param_dtype } = entry.result;
  Deno.test(`parameterGroups() follows model_structure.json param_groups[${index}] (${entry.model_type})`, () => {
    const names = groups.flatMap((group) => group.params);
    const actual = parameterGroups(
      names.map((name) => ({
        name,
        expert: isExpert(name),
        float32: entry.dtype !== "torch.float32" && param_dtype[name] === "torch.float32",
      })),
      {
        weightDecay: groups[0].weight_decay,
        tensorMode: entry.mode as "mtp" | "isp",
        numExperts: groups.some((group) => group.moe) ? 2 : 1,
      },
    );
    // Only 0.3.4 has a group for embedding and head, and there a float32 model's parameters are all in "fp32", experts'
    // too; later versions name by kind.
    const home = (name: string, group: string) =>
      isExpert(name) ? "moe_ep_size_1" : group === "embed_head" || entry.dtype === "torch.float32" ? "default" : group;
    const expected = groups.filter((group) => group.name !== "embed_head").map((group) => ({
      name: group.name,
      partition: group.optimizer_mode.toLowerCase(),
      weightDecay: group.weight_decay,
      parameters: groups.flatMap((from) => from.params.filter((name) => home(name, from.name) === group.name)),
    }));
    assertEquals(
      actual.map(({ name, partition, weightDecay, parameters }) => ({
        name,
        partition: partition as string,
        weightDecay,
        parameters: parameters.map((parameter) => parameter.name),
      })),
      expected,
    );
  });
});
