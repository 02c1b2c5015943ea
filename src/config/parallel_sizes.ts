/** The sizes of the process groups, derived from the record and the number of ranks. */
import type { ConfigProblem } from "./error.ts";
import type { ResolvedConfig } from "./schema/mod.ts";

export interface ParallelSizes {
  /** Ranks in all. */
  readonly world: number;
  /** Tensor parallel: ranks that share each layer. Sequence parallel size is the same. */
  readonly tp: number;
  /** Pipeline stages. */
  readonly pp: number;
  /** Data parallel: ranks with the same shard of the model and different data. */
  readonly dp: number;
  /** Weight parallel: ranks over which weights are split (isp). */
  readonly wp: number;
  /** Weight-data parallel: ranks with the same weights (isp). */
  readonly wdp: number;
  /** Ranks over which optimizer state is divided. */
  readonly zero1: number;
  /** Expert parallel, expert-data, expert-tensor and expert-weight parallel sizes. */
  readonly ep: number;
  readonly edp: number;
  readonly etp: number;
  readonly ewp: number;
}

type Sections = Pick<ResolvedConfig, "parallel"> & { readonly model: { readonly num_experts: number } };

function derive({ parallel, model }: Sections, world: number): ParallelSizes {
  const isp = parallel.tensor.mode === "isp";
  const tp = parallel.tensor.size;
  const pp = parallel.pipeline.size;
  const wp = parallel.weight.size;
  const experts = model.num_experts;
  const share = (...sizes: number[]) => Math.max(1, sizes.reduce((rest, size) => Math.floor(rest / size), world));

  const dp = share(pp, tp);
  const wdp = share(pp, wp);
  const etp = parallel.expert.no_tp ? 1 : tp;
  const ewp = parallel.expert_weight.size;
  const ep = parallel.expert.size < 1
    ? Math.max(1, Math.min(Math.floor(dp * tp / etp), experts))
    : parallel.expert.size;
  const edp = isp ? share(pp, ewp, ep) : share(pp, etp, ep);
  const zero1 = parallel.zero1.size === -1 ? (isp ? wdp : dp) : Math.max(1, parallel.zero1.size);
  return { world, tp, pp, dp, wp, wdp, zero1, ep, edp, etp, ewp };
}

/**
 * The sizes of the process groups of a run.
 *
 * @param world Number of ranks.
 * @throws {RangeError} If the sizes do not fit the number of ranks, or each other.
 *
 * @example
 * ```ts
 * import { parallelSizes, resolveConfig } from "./mod.ts";
 * const config = resolveConfig({
 *   model: { num_layers: 2, vocab_size: 512 },
 *   data: { seq_len: 64, micro_bsz: 1, total_steps: 10 },
 *   adam: { lr: 1e-3 },
 *   ckpt: { enable_save_ckpt: false },
 *   parallel: { tensor: 2 },
 * }, { worldSize: 8, allowRefused: true });
 * console.assert(parallelSizes(config, 8).dp === 4);
 * ```
 */
export function parallelSizes(config: Sections, world: number): ParallelSizes {
  const problems = parallelProblems(config, world);
  if (problems.length > 0) {
    throw new RangeError(problems.map(({ path, message }) => `${path}: ${message}`).join("\n"));
  }
  return derive(config, world);
}

/** What does not fit between the parallel sizes and a number of ranks. */
export function parallelProblems(config: Sections, world: number): ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  const fail = (path: string, message: string) => problems.push({ path, message });
  const { parallel, model } = config;
  const isp = parallel.tensor.mode === "isp";
  const sizes = derive(config, world);
  const { tp, pp, dp, wp, wdp, zero1, ep, edp, etp, ewp } = sizes;

  if (dp * pp * tp !== world) {
    const [path, value, other, name] = tp > 1
      ? ["parallel.tensor.size", tp, pp, `pipeline stages (${pp})`]
      : ["parallel.pipeline.size", pp, tp, `tensor size (${tp})`];
    const rest = world / other, ranks = tp * pp * Math.ceil(world / tp / pp);
    const more = `(--nproc ${ranks} on one machine)`;
    const would = Number.isInteger(rest)
      ? `${rest} ${others(rest)}, and so would ${ranks} ranks ${more}`
      : `${ranks} ranks would ${more}`;
    fail(path, `${value} times the ${name} does not divide the ${world} ranks; ${would}`);
  } else if (wdp * pp * wp !== world) {
    const rest = Math.floor(world / pp);
    fail("parallel.weight.size", `${wp} does not divide the ${rest} ranks of a stage; ${rest} ${others(rest)}`);
  } else {
    const [group, name] = isp ? [wdp, "hold the same weights"] : [dp, "hold the same shard of the model"];
    if (zero1 > group || group % zero1 !== 0) {
      fail(
        "parallel.zero1.size",
        `${zero1} does not divide the ${group} ranks that ${name}; ${group} ${others(group)}`,
      );
    }
    if (model.num_experts > 1) {
      const experts = model.num_experts;
      if (dp % experts !== 0 && experts % dp !== 0) {
        fail(
          "model.num_experts",
          `${experts} experts cannot be shared evenly by ${dp} data-parallel ranks; ${dp} or ${2 * dp} can`,
        );
      } else if (experts % ep !== 0) {
        fail("parallel.expert.size", `${ep} does not divide the ${experts} experts; -1 chooses a size that does`);
      } else if (ep * edp * (isp ? ewp : etp) * pp !== world) {
        fail(
          "parallel.expert.size",
          `${ep} does not divide the ${world} ranks left for experts; -1 chooses a size that does`,
        );
      }
    }
  }
  return problems;
}

/**
 * The record of a run that goes on with another number of ranks: with the optimizer's state divided over as many of them as
 * it may be, but no more than before. What is in parts by `fsdp` goes into as many, or a divisor of them, which divides it too.
 *
 * @param before ranks that the record was resolved for
 * @returns nothing where the other sizes do not fit so many ranks, or its batches not the stages that interleave
 */
export function resized(config: ResolvedConfig, before: number, world: number): ResolvedConfig | undefined {
  if (!interleavesEvenly(config, derive(config, before).dp, derive(config, world).dp)) return undefined;
  const { zero1 } = config.parallel, parts = zero1.fsdp ? derive(config, before).zero1 : zero1.size;
  const sizes = parts < 1 ? [parts] : Array.from({ length: parts }, (_, i) => parts - i);
  for (const size of sizes) {
    if (zero1.fsdp && parts % size !== 0) continue;
    const record = { ...config, parallel: { ...config.parallel, zero1: { ...zero1, size } } };
    if (parallelProblems(record, world).length === 0) return record;
  }
}

/** Whether the batches of so many replicas, dealt out to others, are whole rounds of stages that interleave. */
function interleavesEvenly({ data, model, parallel }: ResolvedConfig, before: number, after: number): boolean {
  const { size: stages } = parallel.pipeline;
  if (stages === 1 || model.num_chunks === 1) return true;
  const [start, increment] = data.rampup_batch_size.trim().split(/\s+/).filter(Boolean).map(Number);
  return [data.micro_num, start, increment].every((size) =>
    size === undefined || (size * before) % (after * stages) === 0
  );
}

const others = (size: number) => size === 1 ? "would" : "or a divisor of it would";
