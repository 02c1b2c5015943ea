/** The sizes of the process groups against InternEvo's. */
import { assertEquals, assertMatch, assertThrows } from "@std/assert";
import { parallelSizes, resolveConfig } from "../src/config/mod.ts";
import { readGoldenJson } from "./golden_dir.ts";

interface Case {
  world: number;
  parallel: Record<string, unknown> & { gqa?: boolean; weight?: number | { size?: number } };
  num_experts?: number;
  result?: { sizes: Record<string, number>; sequence_parallel?: boolean };
  error?: string;
  message?: string;
}
const golden = readGoldenJson<{ cases: Case[]; config_spellings: Case[] }>("internevo", "process_groups.json");

function sizes({ world, parallel, num_experts = 1 }: Case) {
  // The groups are made before a weight size without isp is refused, so that size is put in afterwards; and groups of
  // fully sharded ranks that are split by tensors too, which Troupe does not train.
  const { gqa: _, weight, zero1, ...rest } = parallel, fsdp = (zero1 as { fsdp?: boolean })?.fsdp ?? false;
  const sections = {
    ...rest,
    ...(zero1 === undefined ? {} : { zero1: fsdp ? { ...(zero1 as object), fsdp: false } : zero1 }),
  };
  const config = resolveConfig({
    ...(num_experts > 1 ? { model_type: "INTERNLM_MoE" } : {}),
    // Sizes that any number of ranks divides.
    model: {
      num_layers: 1024,
      num_experts,
      vocab_size: 2 ** 10 * 3 * 5 * 7,
      num_attention_heads: 960,
      num_kv_attention_heads: 960,
      hidden_size: 1920,
    },
    data: { seq_len: 960, micro_bsz: 1, total_steps: 1 },
    adam: { lr: 1 },
    ckpt: { enable_save_ckpt: false },
    parallel: sections,
  }, { worldSize: world, allowRefused: true });
  const size = typeof weight === "number" ? weight : weight?.size ?? 1;
  const withWeight = { ...config, parallel: { ...config.parallel, weight: { ...config.parallel.weight, size } } };
  const { tp, pp, dp, wp, wdp, zero1: divided, ep } = parallelSizes(withWeight, world);
  return {
    data_parallel_size: dp,
    sequence_parallel_size: tp,
    tensor_parallel_size: tp,
    pipeline_parallel_size: pp,
    weight_parallel_size: wp,
    weight_data_parallel_size: wdp,
    zero1_parallel_size: divided,
    expert_parallel_size: ep,
  };
}

Deno.test("parallelSizes() derives InternEvo's sizes", () => {
  for (const [index, test] of [...golden.cases, ...golden.config_spellings].entries()) {
    const name = `case ${index}: world ${test.world}, ${JSON.stringify(test.parallel)}, experts ${
      test.num_experts ?? 1
    }`;
    if (test.result !== undefined) {
      const { nettest_parallel_size: _, ...expected } = test.result.sizes;
      assertEquals(
        Object.fromEntries(Object.keys(expected).map((key) => [key, (sizes(test) as Record<string, number>)[key]])),
        expected,
        name,
      );
    } else if (test.parallel.gqa) {
      console.log(`skipped ${name}: a check of attention heads, which belong to the model`);
    } else if (/'int' object/.test(test.message ?? "")) {
      console.log(`accepted ${name}: a number stands for the size of any parallel section`);
      sizes(test);
    } else {
      assertMatch(assertThrows(() => sizes(test), Error).message, /(parallel|num_experts)[^:]*: \d/, name);
    }
  }
});
