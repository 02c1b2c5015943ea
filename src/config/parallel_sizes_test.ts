import { assertEquals, assertThrows } from "@std/assert";
import { parallelSizes, resized } from "./parallel_sizes.ts";
import { resolveConfig } from "./resolve.ts";

function sizes(world: number, parallel: Record<string, unknown>, experts = 1) {
  const config = resolveConfig({
    model_type: experts > 1 ? "INTERNLM_MoE" : "INTERNLM2",
    model: { num_layers: 8, vocab_size: 512, num_experts: experts },
    data: { seq_len: 16, micro_bsz: 1, total_steps: 1 },
    adam: { lr: 1 },
    ckpt: { enable_save_ckpt: false },
    parallel,
  }, { worldSize: world, allowRefused: true });
  const { tp, pp, dp, wp, wdp, zero1, ep, edp } = parallelSizes(config, world);
  return { tp, pp, dp, wp, wdp, zero1, ep, edp };
}

Deno.test("parallelSizes() derives the worked examples of the process groups", () => {
  assertEquals(sizes(8, { tensor: 2, pipeline: 2, zero1: 2 }), {
    tp: 2,
    pp: 2,
    dp: 2,
    wp: 1,
    wdp: 4,
    zero1: 2,
    ep: 1,
    edp: 2,
  });
  const isp = { tensor: { size: 2, mode: "isp" }, weight: 4 };
  assertEquals(sizes(8, isp), { tp: 2, pp: 1, dp: 4, wp: 4, wdp: 2, zero1: 2, ep: 1, edp: 8 });
  assertEquals(sizes(16, { ...isp, tensor: { size: 2, mode: "isp" }, pipeline: 2 }).wdp, 2);
  assertEquals(sizes(8, { tensor: 2, expert: { no_tp: true } }, 8).ep, 8);
  const experts = { tensor: { size: 1, mode: "isp" }, expert: 4, expert_weight: 2 };
  assertEquals([sizes(16, experts, 16).ep, sizes(16, experts, 16).edp], [4, 2]);
});

Deno.test("parallelSizes() refuses another number of ranks than the record was resolved for", () => {
  const config = resolveConfig({
    model: { num_layers: 2 },
    data: { seq_len: 16, micro_bsz: 1, total_steps: 1 },
    adam: { lr: 1 },
    ckpt: { enable_save_ckpt: false },
    parallel: { tensor: 2 },
  }, { worldSize: 2, allowRefused: true });
  assertThrows(() => parallelSizes(config, 3), RangeError, "parallel.tensor.size");
});

Deno.test("what does not divide the ranks is told with a size, or a number of ranks, that would", () => {
  const message = (world: number, parallel: Record<string, unknown>) =>
    assertThrows(() => sizes(world, parallel), Error).message.split(/ranks; |\n/).at(-1);
  assertEquals(message(1, { tensor: 2 }), "1 would, and so would 2 ranks (--nproc 2 on one machine)");
  assertEquals(message(3, { tensor: 2, pipeline: 2 }), "4 ranks would (--nproc 4 on one machine)");
});

Deno.test("resized() divides the optimizer's state over as many ranks as the new number allows, and no more than before", () => {
  const after = (world: number, parallel: Record<string, unknown>, left: number, num_experts = 1) => {
    const config = resolveConfig({
      model_type: num_experts > 1 ? "MIXTRALMOE" : "INTERNLM2",
      model: { num_layers: 2, num_experts },
      data: { seq_len: 16, micro_bsz: 1, total_steps: 1 },
      adam: { lr: 1 },
      ckpt: { enable_save_ckpt: false },
      parallel,
    }, { worldSize: world, allowRefused: true });
    const record = resized(config, world, left);
    return record && parallelSizes(record, left).zero1;
  };
  assertEquals(after(4, {}, 3), 3);
  assertEquals(after(4, { zero1: 4 }, 3), 3);
  assertEquals(after(4, { zero1: 2 }, 3), 1);
  assertEquals(after(8, { zero1: 4 }, 6), 3);
  assertEquals(after(8, { zero1: 1 }, 7), 1);
  assertEquals(after(8, { zero1: 2, tensor: 2 }, 6), 1);
  assertEquals(after(8, { zero1: { size: 4, fsdp: true } }, 6), 2);
  assertEquals(after(4, { zero1: { fsdp: true } }, 3), 1);
  assertEquals(after(8, { tensor: 2 }, 7), undefined);
  assertEquals(after(4, { zero1: 4 }, 2, 4), 2);
});

Deno.test("resized() leaves stages that interleave whole rounds of every batch", () => {
  const fits = (micro_num: number, left: number, rampup_batch_size = "") => {
    const config = resolveConfig({
      model: { num_layers: 4, num_chunks: 2 },
      data: { seq_len: 16, micro_bsz: 1, micro_num, total_steps: 1, rampup_batch_size },
      adam: { lr: 1 },
      ckpt: { enable_save_ckpt: false },
      parallel: { pipeline: 2 },
    }, { worldSize: 6 });
    return resized(config, 6, left) !== undefined;
  };
  assertEquals([fits(2, 4), fits(4, 4), fits(2, 2)], [false, true, true]);
  assertEquals([fits(4, 4, "2 2 1"), fits(8, 4, "4 4 1")], [false, true]);
});
