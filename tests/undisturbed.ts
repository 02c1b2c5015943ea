/** What a run of several processes is held against where no accident may show: the same run with its ranks in one thread. */
import { deviceOptions, openBackend } from "../src/backend/open.ts";
import { loadConfig, resolveConfig } from "../src/config/mod.ts";
import { createTrainLoader, type DataPosition } from "../src/data/mod.ts";
import type { StepRecord } from "../src/observe/step_record.ts";
import { shardEntries } from "../src/train/checkpoint.ts";
import { Session } from "../src/train/session.ts";
import { type CurvePoint, entryText } from "./processes.ts";
import { together } from "./worlds.ts";

export interface Undisturbed {
  readonly curve: CurvePoint[];
  /** Parameters and moments after the last step, as `checkpointEntries` has them. */
  readonly entries: Record<string, string>;
  /** Where the data of the first rank stand after it. */
  readonly position: DataPosition;
}

export interface UndisturbedOptions {
  /** @default {"cpu"} */
  readonly backend?: "cpu" | "webgpu";
  /** Told of every step. */
  readonly told?: (step: StepRecord) => void;
}

/**
 * The run that `record` (a path) describes with this many ranks, to its last bit as processes have it, without the seconds
 * that those take to start.
 *
 * @throws where there is no such device
 */
export async function undisturbed(
  record: string,
  ranks: number,
  { backend: name = "cpu", told = () => {} }: UndisturbedOptions = {},
): Promise<Undisturbed> {
  const config = resolveConfig(await loadConfig(record), { worldSize: ranks });
  const runs = await together(ranks, async (worldOf, rank) => {
    const world = worldOf(config), { mesh } = world, curve: CurvePoint[] = [], entries: Record<string, string> = {};
    using backend = await openBackend(name, deviceOptions(config.runtime));
    const loader = createTrainLoader(config.data, { dataRank: mesh.index("data"), dataWorldSize: mesh.size("data") });
    try {
      using session = await Session.open(config, { backend, world, datasetTypes: loader.datasetTypes });
      const { trainer } = session;
      while (curve.length < config.data.total_steps) {
        const batch = await loader.next(), { record, loss, gradNorm } = await session.step(batch);
        curve.push({ step: batch.batchCount, loss, gradNorm, lr: record!.lr as number });
        if (rank === 0) told(record!);
      }
      await trainer.gather();
      for (const { data, ...box } of shardEntries(trainer.model)) {
        for await (const values of (data as () => AsyncIterable<Float32Array>)()) {
          Object.assign(entries, entryText(box, values));
        }
      }
      await backend.finish();
      return { curve, entries, position: loader.state() };
    } finally {
      loader.close();
    }
  });
  return { ...runs[0]!, entries: Object.assign({}, ...runs.map(({ entries }) => entries)) };
}
