import { assertEquals } from "@std/assert";
import type { Checkpoint } from "../checkpoint/mod.ts";
import { printResolved } from "../config/mod.ts";
import { tinyRecord } from "./_testing.ts";
import { recordDifferences } from "./load.ts";

Deno.test("recordDifferences() tells what changes a model and shows in no shape", () => {
  const experts = { num_experts: 4, top_k: 2, moe_type: "Dropless" };
  const record = (model: Record<string, unknown>) =>
    tinyRecord({ model_type: "MIXTRALMOE", model: { ...experts, ...model } });
  const was = { capacity_factor: 1, drop_policy: "probs" }, turned = { drop_policy: "probs", capacity_factor: 1 };
  const checkpoint = {
    directory: "ck/3",
    manifest: { config: printResolved(record({ moe_layer_kwargs: was })) },
  } as unknown as Checkpoint;
  assertEquals(recordDifferences(checkpoint, record({ moe_layer_kwargs: turned })), []);
  assertEquals(recordDifferences(checkpoint, record({ top_k: 1, moe_layer_kwargs: was, embed_grad_scale: 0.5 })), [
    "model.top_k was 2 in the run of checkpoint ck/3, and is 1",
  ]);
  assertEquals(recordDifferences(checkpoint, record({ moe_layer_kwargs: { ...was, capacity_factor: 2 } })), [
    `model.moe_layer_kwargs was {"capacity_factor":1,"drop_policy":"probs"} in the run of checkpoint ck/3, and is ` +
    `{"capacity_factor":2,"drop_policy":"probs"}`,
  ]);
});
