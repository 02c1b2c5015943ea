/**
 * Whether a run fits a device, and what would make it fit. Every figure comes from a whole plan of the changed record, so
 * what is promised is what the run would take.
 */
import type { Backend } from "../backend/backend.ts";
import type { ResolvedConfig } from "../config/mod.ts";
import { formatBytes } from "../observe/format.ts";

/** Memory that a run may take, and who says so. */
export interface Room {
  readonly bytes: number;
  readonly from: string;
}

/** Settings that change what a run takes, as they are written in a record, and what it then takes. */
export interface Remedy {
  readonly settings: readonly string[];
  /** Where it takes more ranks than there are: how many. */
  readonly ranks?: number;
  readonly bytes: number;
}

/** Bytes that a record plans on this rank. */
export type Planned = (config: ResolvedConfig) => number;

/**
 * What a rank has: `runtime.device_memory` where the record tells it; what is free of this machine's memory where the
 * device computes in it. Else undefined: WebGPU does not tell what a GPU has.
 */
export function roomOf({ runtime }: Pick<ResolvedConfig, "runtime">, { name, traits }: Backend): Room | undefined {
  if (runtime.device_memory !== null) return { bytes: runtime.device_memory, from: "runtime.device_memory" };
  if (name === "null" || (name === "webgpu" && !traits.software)) return undefined;
  const { state } = Deno.permissions.querySync({ name: "sys", kind: "systemMemoryInfo" });
  if (state !== "granted") return undefined;
  return { bytes: Deno.systemMemoryInfo().available, from: "free on this machine" };
}

/** What a record would plan on a rank of a larger world, and how large it is now. */
export interface OnMoreRanks {
  readonly world: number;
  planned(config: ResolvedConfig, place: { readonly rank: number; readonly world: number }): number;
}

interface Change {
  readonly settings: readonly string[];
  readonly config: ResolvedConfig;
}

const together = (
  changes: readonly ((config: ResolvedConfig) => Change | undefined)[],
  config: ResolvedConfig,
): Change =>
  changes.reduce<Change>((done, change) => {
    const next = change(done.config);
    return next ? { settings: [...done.settings, ...next.settings], config: next.config } : done;
  }, { settings: [], config });

/** Recomputes so many layers of `num_layers`, in each chunk as many as its share. */
const recompute = (layers: number) => (config: ResolvedConfig): Change | undefined => {
  const { model } = config, checkpoint = Math.ceil(layers / model.num_layers * 1000) / 1000;
  if (checkpoint <= model.checkpoint) return undefined;
  return { settings: [`model.checkpoint=${checkpoint}`], config: { ...config, model: { ...model, checkpoint } } };
};

const inHalf = (config: ResolvedConfig): Change | undefined =>
  config.model.dtype !== "float32"
    ? undefined
    : { settings: ["model.dtype=bfloat16"], config: { ...config, model: { ...config.model, dtype: "bfloat16" } } };

/** Smaller micro-batches, and so many more of them that the batch stays as it is. */
const rowsOf = (rows: number) => (config: ResolvedConfig): Change | undefined => {
  const { data } = config, batch = data.micro_bsz * data.micro_num;
  if (rows >= data.micro_bsz || data.packed_length !== data.micro_bsz * data.seq_len) return undefined;
  const changed = { ...data, micro_bsz: rows, packed_length: rows * data.seq_len, micro_num: batch / rows };
  return {
    settings: [`data.micro_bsz=${rows}`, `data.micro_num=${changed.micro_num}`],
    config: { ...config, data: changed },
  };
};

/** The least number of stages, a power of two, that is enough: as many times more ranks. */
function moreStages(config: ResolvedConfig, room: number, { world, planned }: OnMoreRanks): Remedy | undefined {
  const { parallel, model } = config, { size } = parallel.pipeline;
  for (let times = 2; times * size * model.num_chunks <= model.num_layers; times *= 2) {
    const stages = times * size, ranks = times * world, pipeline = { ...parallel.pipeline, size: stages };
    const changed = { ...config, parallel: { ...parallel, pipeline } };
    // The first stage has the embedding and most micro-batches in flight, the last one the head.
    const bytes = Math.max(
      ...[0, ranks / stages * (stages - 1)].map((rank) => planned(changed, { rank, world: ranks })),
    );
    if (bytes <= room) return { settings: [`parallel.pipeline.size=${stages}`], ranks, bytes };
  }
}

/** The optimizer's state over all data-parallel ranks. */
const divided = (replicas: number) => (config: ResolvedConfig): Change | undefined => {
  const { parallel } = config, { size } = parallel.zero1;
  if (replicas === 1 || size < 0 || size >= replicas) return undefined;
  return {
    settings: ["parallel.zero1.size=-1"],
    config: { ...config, parallel: { ...parallel, zero1: { ...parallel.zero1, size: replicas } } },
  };
};

/** The least of `from`…`to` that is enough, where more takes less; undefined where `to` is not. */
function least(from: number, to: number, enough: (value: number) => boolean): number | undefined {
  if (from > to || !enough(to)) return undefined;
  let low = from, high = to;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if (enough(middle)) high = middle;
    else low = middle + 1;
  }
  return high;
}

/**
 * What would make a run fit: each setting alone, as little of it as is enough; where none is, all of them together.
 *
 * @param replicas data-parallel ranks
 * @returns `fits: false` with the least that the run can take, where even that is too much
 */
export function remedies(
  config: ResolvedConfig,
  { bytes: room, planned, replicas = 1, more }: {
    readonly bytes: number;
    readonly planned: Planned;
    readonly replicas?: number;
    /** Offers more ranks too. */
    readonly more?: OnMoreRanks | undefined;
  },
): { readonly fits: boolean; readonly remedies: readonly Remedy[] } {
  const known = new Map<string, number>();
  const bytesOf = ({ settings, config }: Change) => {
    const key = settings.join(" "), bytes = known.get(key) ?? planned(config);
    known.set(key, bytes);
    return bytes;
  };
  const fits = (change: Change | undefined) => change !== undefined && bytesOf(change) <= room;
  const { num_layers: layers, checkpoint } = config.model, { micro_bsz: rows, micro_num } = config.data;

  const first = Math.trunc(layers * checkpoint) + 1;
  const recomputed = least(first, layers, (count) => fits(recompute(count)(config)));
  const fewer = Array.from({ length: rows - 1 }, (_, less) => rows - 1 - less)
    .filter((count) => rows * micro_num % count === 0)
    .find((count) => fits(rowsOf(count)(config)));
  const alone = [
    ...(recomputed === undefined ? [] : [recompute(recomputed)(config)]),
    inHalf(config),
    ...(fewer === undefined ? [] : [rowsOf(fewer)(config)]),
    divided(replicas)(config),
  ].filter((change) => change !== undefined).filter(fits);
  const remedy = (change: Change): Remedy => ({ settings: change.settings, bytes: bytesOf(change) });
  const wider = more && moreStages(config, room, more), offered = wider ? [wider] : [];
  if (alone.length > 0) return { fits: true, remedies: [...alone.map(remedy), ...offered] };

  const steps = [divided(replicas), recompute(layers), inHalf, rowsOf(1)];
  const chains = steps.map((_, count) => together(steps.slice(0, count + 1), config));
  const enough = chains.find(fits);
  if (!enough && wider) return { fits: true, remedies: offered };
  return { fits: enough !== undefined, remedies: [remedy(enough ?? chains.at(-1)!), ...offered] };
}

/** What would make a run fit, for people: the end of a sentence. */
export function adviceFor(config: ResolvedConfig, options: Parameters<typeof remedies>[1]): string {
  const { fits, remedies: found } = remedies(config, options);
  const words = ({ settings, ranks, bytes }: Remedy) =>
    `${settings.join(" and ")}${ranks ? ` on ${ranks} ranks` : ""} (takes ${formatBytes(bytes)}${
      ranks ? " on each" : ""
    })`;
  if (fits) return `it would fit with ${found.length > 1 ? "any of " : ""}${found.map(words).join(", ")}`;
  return `even with ${words(found[0]!)} it would not fit: a shorter data.seq_len, a smaller model, or more ranks ` +
    "(parallel.tensor, parallel.pipeline) are needed";
}

/** That a run does not fit, and what would. */
export const unfitting = (planned: number, { bytes, from }: Room, advice: string): string =>
  `Cannot fit the run: it plans ${formatBytes(planned)} on the device, and ${
    formatBytes(bytes)
  } are there (${from}); ` +
  advice;
