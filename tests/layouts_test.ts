/** However a model is divided over ranks, it trains as on one. */
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { type Curve, type Division, onWorld, recordOf, type TinyRun, trainSteps } from "./layouts.ts";
import { type Layout, layouts, type RunName, runs } from "./layouts_table.ts";

const tolerances = { loss: 2e-4, gradNorm: 1e-3 };
const steps = 10;

const onOneRank = new Map<string, Promise<Curve>>();
/** The same training on one rank. */
function alone(name: RunName, { model: { dtype = "float32" } = {} }: Layout): Promise<Curve> {
  const run: TinyRun = runs[name], key = `${name} ${dtype}`, known = onOneRank.get(key);
  if (known) return known;
  const record = recordOf(run, { ranks: 1, model: { dtype } });
  const curves = onWorld(record, 1, (trainer, world) => trainSteps(trainer, world, run, 0, steps));
  onOneRank.set(key, curves.then(([one]) => one));
  return onOneRank.get(key)!;
}

for (const [layout, division] of Object.entries(layouts)) {
  const allowed = division.tolerances ?? tolerances;
  const because = division.tolerances ? `, within ${allowed.loss}: ${division.tolerances.because}` : "";
  for (const name of division.runs ?? ["internlm2"] as const) {
    Deno.test(`${name} trains on ${layout} as on one rank${because}`, async () => {
      const run: TinyRun = runs[name], one = await alone(name, division);
      const work = (...[trainer, world]: Parameters<Parameters<typeof onWorld>[2]>) =>
        trainSteps(trainer, world, run, 0, steps);
      const all = await onWorld(recordOf(run, division), division.ranks, work);
      const { losses, gradNorms } = all[0];
      for (const other of all) {
        assertEquals([other.losses, other.gradNorms], [losses, gradNorms], "ranks agree to the bit");
      }
      assert(losses.at(-1)! < losses[0] - 0.1, `it learns: ${losses}`);
      for (let step = 0; step < steps; step++) {
        assertAlmostEquals(losses[step], one.losses[step], allowed.loss, `loss of step ${step}`);
        const margin = allowed.gradNorm * one.gradNorms[step];
        assertAlmostEquals(gradNorms[step], one.gradNorms[step], margin, `gradient norm of step ${step}`);
      }
    });
  }
}

Deno.test("weights that are gathered ahead of need change no bit, and no byte more moves", async () => {
  const run: TinyRun = { ...runs["internlm2 of 8 layers"], microBatches: 2 };
  const train = async (weight: Record<string, unknown>) => {
    const division: Division = {
      ranks: 2,
      parallel: { tensor: { mode: "isp", size: 2 }, weight: { size: 2, ...weight } },
      model: { num_layers: 4, checkpoint: 0.5 },
    };
    const work = (...[trainer, world]: Parameters<Parameters<typeof onWorld>[2]>) =>
      trainSteps(trainer, world, run, 0, 3);
    return (await onWorld(recordOf(run, division), 2, work))[0];
  };
  const plain = await train({});
  assertEquals(await train({ overlap: true, forward_overlap_per: "module" }), plain);
  for (const launch_allgather_before of ["wqkv", "attn", "wo", "w1"]) {
    assertEquals(await train({ overlap: true, launch_allgather_before }), plain, launch_allgather_before);
  }
});
