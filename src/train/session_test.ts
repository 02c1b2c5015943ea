import { assertAlmostEquals, assertEquals } from "@std/assert";
import { openBackend } from "../backend/open.ts";
import { createCommunicator } from "../comm/collectives/communicator.ts";
import { simulatedWorld } from "../comm/transport/simulated.ts";
import { createTrainLoader } from "../data/mod.ts";
import { getMegatronFlops } from "../observe/flops.ts";
import type { StepRecord } from "../observe/step_record.ts";
import { runMesh } from "../parallel/run_mesh.ts";
import { createWorld } from "../parallel/world.ts";
import { tinyRecord } from "./_testing.ts";
import { Session } from "./session.ts";

/** The first step's record, as the rank that logs has it. */
async function recordOf(ranks: number, rowsOfRank: number, began: number): Promise<StepRecord> {
  const config = tinyRecord({ model: { vocab_size: 200 }, data: { micro_num: rowsOfRank } }, { worldSize: ranks });
  const transports = simulatedWorld(ranks);
  try {
    const records = await Promise.all(transports.map(async (transport, rank) => {
      const world = createWorld(runMesh(config, { rank, world: ranks }), createCommunicator(transport));
      using backend = await openBackend("cpu");
      const shard = { dataRank: rank, dataWorldSize: ranks, referenceWorldSize: began };
      const loader = createTrainLoader(config.data, shard), datasetTypes = loader.datasetTypes;
      const microBatches = Math.ceil(rowsOfRank * began / ranks);
      using session = await Session.open(config, { backend, world, microBatches, datasetTypes });
      const { record } = await session.step(await loader.next());
      loader.close();
      return record!;
    }));
    return records[0]!;
  } finally {
    await Promise.all(transports.map((transport) => transport.close()));
  }
}

Deno.test("a step's record has the work and the tokens of the whole batch, however it was dealt to ranks", async () => {
  const flopsOfToken = 1e12 * getMegatronFlops({
    secondsPerStep: 1,
    globalBatchSize: 1,
    seqLen: 9,
    hiddenSize: 12,
    numLayers: 2,
    vocabSize: 200,
    mlpRatio: 1.5,
  }) / 9;
  // Two ranks, and then as many with the three rows of one that went before: one has two of them.
  for (const [ranks, rows, began] of [[1, 3, 1], [2, 3, 2], [2, 3, 1]] as const) {
    const { tflops, "tgs (tokens/gpu/second)": tgs } = await recordOf(ranks, rows, began) as Record<string, number>;
    const ratio = 1e12 * tflops! / tgs! / flopsOfToken;
    assertAlmostEquals(ratio, 1, 1e-3, `${ranks} ranks, ${rows} rows of each of ${began}`);
  }
});

Deno.test("no evaluation is due where every set is too small for one micro-batch", async () => {
  for (const [micro_bsz, due] of [[1, true], [501, false]] as const) {
    const record = tinyRecord({ data: { seq_len: 2, micro_bsz, micro_num: 1, valid_every: 3 } });
    using backend = await openBackend("cpu");
    using session = await Session.open(record, { backend });
    assertEquals(session.evaluationDue, false);
    session.trainer.stepCount = 3;
    assertEquals(session.evaluationDue, due);
  }
});
