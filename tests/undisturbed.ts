/** What a run of several processes is held against where no accident may show: the same run with its ranks in one thread. */
import { openBackend } from "../src/backend/open.ts";
import { loadConfig, resolveConfig } from "../src/config/mod.ts";
import { createTrainLoader } from "../src/data/mod.ts";
import type { StepRecord } from "../src/observe/step_record.ts";
import { Session } from "../src/train/session.ts";
import type { CurvePoint } from "./processes.ts";
import { together } from "./worlds.ts";

/**
 * The curve of the run that `record` (a path) describes, on the CPU with this many ranks, to its last bit as processes
 * have it, without the seconds that those take to start.
 *
 * @param told of every step
 */
export async function undisturbed(
  record: string,
  ranks: number,
  told: (step: StepRecord) => void = () => {},
): Promise<CurvePoint[]> {
  const config = resolveConfig(await loadConfig(record), { worldSize: ranks });
  const [curve] = await together(ranks, async (worldOf, rank) => {
    const world = worldOf(config), { mesh } = world, points: CurvePoint[] = [];
    using backend = await openBackend("cpu");
    const loader = createTrainLoader(config.data, { dataRank: mesh.index("data"), dataWorldSize: mesh.size("data") });
    try {
      using session = await Session.open(config, { backend, world, datasetTypes: loader.datasetTypes });
      while (points.length < config.data.total_steps) {
        const batch = await loader.next(), { record, loss, gradNorm } = await session.step(batch);
        points.push({ step: batch.batchCount, loss, gradNorm, lr: record!.lr as number });
        if (rank === 0) told(record!);
      }
      await backend.finish();
    } finally {
      loader.close();
    }
    return points;
  });
  return curve!;
}
