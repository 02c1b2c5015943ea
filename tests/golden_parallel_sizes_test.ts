/** The sizes of the process groups against InternEvo's. */
import { assertEquals, assertMatch, assertThrows } from "@std/assert";
import { readGoldenJson } from "./golden_dir.ts";
import { type RecordedLayout, sizesOf } from "./recorded_groups.ts";

interface Case extends RecordedLayout {
  result?: { sizes: Record<string, number>; sequence_parallel?: boolean };
  error?: string;
  message?: string;
}
const golden = readGoldenJson<{ cases: Case[]; config_spellings: Case[] }>("internevo", "process_groups.json");

function sizes(test: Case): Record<string, number> {
  const { tp, pp, dp, wp, wdp, zero1: divided, ep } = sizesOf(test).sizes;
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
      const { nettest_parallel_size: _, ...expected } = test.result.sizes, actual = sizes(test);
      assertEquals(
        Object.fromEntries(Object.keys(expected).map((key) => [key, actual[key]])),
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
