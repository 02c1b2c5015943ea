/** What `troupe plan --world` predicts, beside what was measured (`tests/measured/`). */
import { assert } from "@std/assert";
import { resolveConfig } from "../src/config/mod.ts";
import { devices, links } from "../src/train/hardware.ts";
import { predict } from "../src/train/predict.ts";

interface Measured {
  readonly record: Record<string, Record<string, unknown>>;
  readonly runs: readonly {
    readonly ranks: number;
    /** Of all ranks, in a step. */
    readonly tokens: number;
    readonly overlap: boolean;
    readonly turns?: boolean;
    readonly tokens_per_second: number;
  }[];
}
const { record, runs }: Measured = JSON.parse(
  Deno.readTextFileSync(new URL("measured/ranks_sharing_an_h200.json", import.meta.url)),
);

Deno.test("predict() comes within 15 % of what 1, 2 and 4 ranks on one H200 were measured to do", () => {
  for (const { ranks, tokens, overlap, turns = false, tokens_per_second: measured } of runs) {
    const rows = tokens / ranks / 1024, micro_bsz = Math.min(4, rows);
    const config = resolveConfig(
      {
        ...record,
        runtime: { gpu_turns: turns },
        data: { ...record.data, micro_bsz, micro_num: rows / micro_bsz },
        hybrid_zero_optimizer: {
          overlap_sync_grad: overlap,
          overlap_sync_param: overlap,
          use_split_tensor_optim: overlap,
        },
      },
      { worldSize: ranks },
    );
    const { tokensPerSecond, fits } = predict(config, {
      world: ranks,
      perDevice: ranks,
      perHost: 1,
      device: devices.h200!,
      link: links.loopback!,
    });
    const off = tokensPerSecond / measured - 1;
    assert(fits, `${ranks} ranks fit`);
    assert(
      Math.abs(off) < 0.15,
      `${ranks} ranks, ${tokens} tokens a step, overlap ${overlap}, turns ${turns}: ${
        tokensPerSecond.toFixed(0)
      } predicted, ${measured} measured`,
    );
  }
});
