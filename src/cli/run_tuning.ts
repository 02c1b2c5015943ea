/**
 * Which forms of kernels a run takes: those that its checkpoint names, where it goes on from one; what the record says, where
 * it says anything; else what the tuner has found on this machine so far. Written into the record, which every rank is
 * handed and every checkpoint keeps: so all ranks agree, and sums keep their order when the run goes on.
 */
import { parse } from "@std/yaml";
import { type Checkpoint, listCheckpoints, openCheckpoint } from "../checkpoint/mod.ts";
import type { ResolvedConfig } from "../config/mod.ts";
import { readTuning, type Tuning, tuningFolder } from "../train/tuning_cache.ts";

/** What the record in a checkpoint says; undefined where it is of a time before there was a tuner. */
function tuningOf({ manifest }: Pick<Checkpoint, "manifest">): Tuning | undefined {
  try {
    return (parse(manifest.config) as { runtime?: { tuning?: Tuning | null } } | null)?.runtime?.tuning ?? undefined;
  } catch {
    return undefined;
  }
}

/** That of the checkpoint that a run would go on from. */
function tuningBefore(
  config: ResolvedConfig,
  folders: readonly string[],
): { tuning: Tuning; step: number } | undefined {
  if (!config.ckpt.auto_resume) return undefined;
  const newest = listCheckpoints(folders).find(({ status }) => status === "complete");
  if (!newest) return undefined;
  using checkpoint = openCheckpoint(newest.directory);
  return { tuning: tuningOf(checkpoint) ?? {}, step: checkpoint.step };
}

const same = (a: Tuning, b: Tuning) => {
  const text = (tuning: Tuning) =>
    JSON.stringify(
      Object.entries(tuning).filter(([, choices]) => Object.keys(choices).length > 0).sort()
        .map(([adapter, choices]) => [adapter, Object.entries(choices).sort()]),
    );
  return text(a) === text(b);
};

/**
 * The record with what its run takes.
 *
 * @param options `folders`: of the run's checkpoints. `retuned`: the tuner has just run because the user asked for it
 */
export function withTuning(
  config: ResolvedConfig,
  { folders, retuned, onNotice, folder = tuningFolder() }: {
    folders: readonly string[];
    retuned: boolean;
    onNotice: (sentence: string) => void;
    folder?: string | undefined;
  },
): ResolvedConfig {
  const written = config.runtime.tuning, before = tuningBefore(config, folders);
  const wanted = written ?? readTuning({ folder, onNotice });
  let tuning = wanted;
  if (before && !same(before.tuning, wanted)) {
    const other = written ? "runtime.tuning says otherwise" : "the tuner has found others since";
    if (retuned || written) {
      onNotice(
        `${
          retuned ? "--retune" : "runtime.tuning"
        }: the run goes on from step ${before.step} with other forms of kernels ` +
          "than before; its sums differ in their last bits from those of a run that was not interrupted",
      );
    } else {
      onNotice(
        `The run goes on with the forms of kernels that it began with, so that sums stay the same (${other}; --retune ` +
          "takes those)",
      );
      tuning = before.tuning;
    }
  }
  return { ...config, runtime: { ...config.runtime, tuning } };
}
