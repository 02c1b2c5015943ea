/** A replay that leaves its reference where two experts are as good as each other says so, and proves it. */
import { assert, assertEquals, assertLess } from "@std/assert";
import { openBackend } from "../src/backend/open.ts";
import type { Kernel } from "../kernels/kernel.ts";
import { RouterWitness } from "../src/train/narrow_choices.ts";
import { verify, type VerifyReport } from "../src/train/verify.ts";
import { goldenPath } from "./golden_dir.ts";
import { together } from "./worlds.ts";

const layer = 1, experts = 4, steps = 1, reference = goldenPath("hf", "mixtral");
const router = `model.layers.${layer}.mlp.gate.weight`;

/** `hf/mixtral`, its first steps only, the last layer's router as `change` leaves it, and with other losses. */
async function altered(
  folder: string,
  { change = () => {}, losses }: {
    readonly change?: (rows: Float32Array) => void;
    readonly losses?: readonly number[];
  },
): Promise<void> {
  await Deno.mkdir(folder, { recursive: true });
  await Deno.copyFile(`${reference}/config.json`, `${folder}/config.json`);
  const curve = JSON.parse(await Deno.readTextFile(`${reference}/curve.json`));
  curve.steps.length = steps;
  losses?.forEach((loss, step) => curve.steps[step].loss = loss);
  await Deno.writeTextFile(`${folder}/curve.json`, JSON.stringify(curve));
  const bytes = await Deno.readFile(`${reference}/model.safetensors`);
  const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  const [begin, end] = header[router].data_offsets, own = bytes.subarray(8 + length + begin, 8 + length + end);
  const rows = new Float32Array(own.slice().buffer);
  change(rows);
  own.set(new Uint8Array(rows.buffer));
  await Deno.writeFile(`${folder}/model.safetensors`, bytes);
}

/** Losses alone are compared: other figures are still those of the unaltered model. */
const anything = { gradNorm: Infinity, logits: Infinity, paramNorm: Infinity };

/** Losses of a replay, and the narrowest choice in the last layer of its first step. */
async function watched(folder: string) {
  using backend = await openBackend("cpu");
  using witness = new RouterWitness(backend);
  const losses: number[] = [], kernels: Kernel[] = [];
  await verify(folder, {
    backend: witness.backend,
    tolerances: { ...anything, loss: Infinity },
    onStep: ({ loss }) => losses.push(loss),
  });
  // Routers of an evaluation come before those of the first step.
  const layerOf = (kernel: Kernel) => {
    if (!kernels.includes(kernel)) kernels.push(kernel);
    return kernels.indexOf(kernel) === 3 ? layer : undefined;
  };
  const layers = Object.assign(new Map<Kernel, number>(), { get: layerOf });
  return { losses, narrow: (await witness.take(layers, { experts, choices: 2, microBatches: 1 }))! };
}

Deno.test("verify() names the tie at which a mixture leaves its reference, and replays it with the other expert", async () => {
  const folder = await Deno.makeTempDir();
  try {
    await altered(`${folder}/as it is`, {});
    const { narrow: { row: token, chosen, other, score, apart } } = await watched(`${folder}/as it is`);
    // The other expert's score becomes that of the chosen one, but for some millionths more or less.
    const nearly = (share: number) => (rows: Float32Array) => {
      const factor = score / (score - apart) * (1 + share), { length } = rows;
      for (let i = 0; i < length / experts; i++) rows[length / experts * other + i]! *= factor;
    };
    const above = 3e-6 * Math.sign(score);
    await altered(`${folder}/other`, { change: nearly(above) });
    const { losses } = await watched(`${folder}/other`);

    const replay = async (name: string, ranks: number, losses: readonly number[]): Promise<VerifyReport> => {
      await altered(`${folder}/${name}`, { change: nearly(-above), losses });
      const set = ranks === 1 ? [] : [`parallel.tensor.size=${ranks}`, "parallel.tensor.mode=isp"];
      const [report] = await together(ranks, async (world) => {
        using backend = await openBackend("cpu");
        const tolerances = { ...anything, loss: 4e-6 };
        return await verify(`${folder}/${name}`, { backend, nproc: ranks, world, set, tolerances });
      });
      return report!;
    };
    for (const ranks of [1, 2]) {
      const { pass, tie } = await replay("chosen", ranks, losses);
      assertEquals(pass, false, "a tie is no excuse");
      assert(tie, `a tie on ${ranks} ranks`);
      assertEquals([tie.step, tie.layer, tie.microBatch, tie.token, ...tie.experts], [
        1,
        layer,
        0,
        token,
        chosen,
        other,
      ]);
      assertLess(tie.apart, 1e-5 * tie.size);
      assertEquals(tie.lossErrors[0], 0);
      assert(tie.otherwise.pass, JSON.stringify(tie));
      assertLess(tie.otherwise.maxLossError, tie.lossErrors[1]);
    }
    const { tie } = await replay("off", 1, losses.map((loss) => loss + 0.01));
    assertEquals([tie?.token, tie?.otherwise.pass], [token, false], "a tie that is not what went wrong");
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
