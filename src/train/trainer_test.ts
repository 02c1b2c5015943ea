import { assert, assertAlmostEquals, assertEquals, assertNotEquals, assertRejects } from "@std/assert";
import { backendNames, openBackend } from "../backend/open.ts";
import { openNullBackend } from "../backend/null/backend.ts";
import { assertTakesOver, drawnMicroBatch, openTrainer, takeStep, tensorsOf, tinyRecord } from "./_testing.ts";
import type { Trainer } from "./trainer.ts";

const a = drawnMicroBatch("a", [9]), b = drawnMicroBatch("b", [4, 5], { ignored: 3 });
const realBackends = backendNames.filter((name) => name !== "null");

for (const name of realBackends) {
  Deno.test(`${name}: a step needs a schedule, and a schedule serves one step`, async () => {
    using backend = await openBackend(name);
    using trainer = await openTrainer(tinyRecord(), backend);
    const refused = () => assertRejects(() => trainer.step(), Error, "no schedule was executed");
    await refused();
    trainer.zeroGrad();
    await refused();
    const { loss, gradNorm } = await trainer.executeSchedule({ microBatches: [a, b] });
    const step = await trainer.step();
    assertEquals([step.success, step.gradNorm, trainer.stepCount], [true, gradNorm, 1]);
    // Adam's first step on any gradient is of the learning rate, so a model of this size learns at once.
    const again = await takeStep(trainer, [a, b]);
    assert(again.loss < loss, `${again.loss} after ${loss}`);
    await refused();
    await trainer.executeSchedule({ microBatches: [a, b] });
    trainer.zeroGrad();
    await refused();
    await backend.finish();
  });

  Deno.test(`${name}: two runs of the same record are the same bit for bit, dropout and recomputation included`, async () => {
    using backend = await openBackend(name);
    const run = async (checkpoint: number) => {
      using trainer = await openTrainer(tinyRecord({ model: { drop_rate: 0.2, checkpoint } }), backend);
      const losses = [];
      for (let step = 0; step < 3; step++) losses.push((await takeStep(trainer, [a, b])).loss);
      return { losses, parameters: await tensorsOf(trainer) };
    };
    const first = await run(0);
    assertEquals(await run(0), first);
    assertEquals(await run(1), first);
    await backend.finish();
  });

  Deno.test(`${name}: the state and the tensors of a trainer are all of it`, async () => {
    using backend = await openBackend(name);
    const record = tinyRecord({ model: { drop_rate: 0.2 }, beta2_scheduler: { c: 0.8 } });
    using one = await openTrainer(record, backend);
    using other = await openTrainer(record, backend);
    await takeStep(one, [a, b]);
    await takeStep(one, [b, a]);
    await assertTakesOver(other, one, [a, b]);
    await backend.finish();
  });

  Deno.test(`${name}: a gradient that is not finite skips the update and nothing else`, async () => {
    using backend = await openBackend(name);
    using trainer = await openTrainer(tinyRecord(), backend);
    const head = await trainer.model.program.readParameter("parameter", "head.weight");
    for (const poison of [Infinity, NaN]) {
      trainer.model.program.writeParameter("parameter", "head.weight", head.with(3, poison));
      const before = {
        state: trainer.state(),
        parameters: await tensorsOf(trainer),
        moments: await tensorsOf(trainer, "moment1"),
      };
      const { success, gradNorm } = await takeStep(trainer, [a, b]);
      assertEquals(success, false);
      assert(!Number.isFinite(gradNorm));
      const { inf_nan_skip_batches, ...rest } = trainer.state();
      const { inf_nan_skip_batches: skipped, ...restBefore } = before.state;
      assertEquals(inf_nan_skip_batches, skipped + 1);
      assertEquals(rest, restBefore);
      assertEquals(await tensorsOf(trainer), before.parameters);
      assertEquals(await tensorsOf(trainer, "moment1"), before.moments);
    }
    trainer.model.program.writeParameter("parameter", "head.weight", head);
    assertEquals((await takeStep(trainer, [a, b])).success, true);
    await backend.finish();
  });
}

Deno.test("executeSchedule() takes the mean of the micro-batches' means, whatever their labels count", async () => {
  using backend = await openBackend("cpu");
  using trainer = await openTrainer(tinyRecord({ data: { micro_num: 3 } }), backend);
  const gradientsOf = async (...microBatches: typeof a[]) => {
    trainer.zeroGrad();
    const { loss } = await trainer.executeSchedule({ microBatches });
    return { loss, gradients: await tensorsOf(trainer, "gradient") };
  };
  const c = drawnMicroBatch("c", [2, 2, 5]);
  const parts = [await gradientsOf(a), await gradientsOf(b), await gradientsOf(c)];
  const counts = [a, b, c].map(({ labels }) => labels.filter((label) => label >= 0).length);
  assertEquals(new Set(counts).size, 3, "the micro-batches differ in labels");
  const whole = await gradientsOf(a, b, c);
  assertAlmostEquals(whole.loss, parts.reduce((sum, { loss }) => sum + loss, 0) / 3, 1e-6);
  for (const [name, gradient] of whole.gradients) {
    gradient.forEach((value, i) => {
      const mean = parts.reduce((sum, { gradients }) => sum + gradients.get(name)![i], 0) / 3;
      assertAlmostEquals(value, mean, 1e-6, `${name}[${i}]`);
    });
  }
});

Deno.test("executeSchedule() on micro-batches of as many labels equals one large micro-batch", async () => {
  using backend = await openBackend("cpu");
  const rows = ["p", "q"].map((key) => drawnMicroBatch(key, [9]));
  const joined = { ...drawnMicroBatch("p", [9, 9]) };
  rows.forEach(({ inputIds, labels }, row) => {
    joined.inputIds.set(inputIds, 9 * row);
    joined.labels.set(labels, 9 * row);
  });
  using small = await openTrainer(tinyRecord(), backend);
  using large = await openTrainer(tinyRecord({ data: { micro_bsz: 2, micro_num: 1 } }), backend);
  const [one, other] = [await takeStep(small, rows), await takeStep(large, [joined])];
  assertAlmostEquals(one.loss, other.loss, 1e-6);
  assertAlmostEquals(one.gradNorm, other.gradNorm, 1e-6);
  const expected = await tensorsOf(large, "gradient");
  for (const [name, gradient] of await tensorsOf(small, "gradient")) {
    gradient.forEach((value, i) => assertAlmostEquals(value, expected.get(name)![i], 1e-6, `${name}[${i}]`));
  }
});

Deno.test("executeSchedule() gives a micro-batch without labels no loss and no gradient", async () => {
  using backend = await openBackend("cpu");
  using trainer = await openTrainer(tinyRecord(), backend);
  const silent = { ...a, labels: a.labels.map(() => -100) };
  const nothing = await takeStep(trainer, [silent]);
  assertEquals([nothing.loss, nothing.gradNorm, nothing.success], [0, 0, true]);
});

Deno.test("dropout draws anew at each step and in each micro-batch, and its gradient is that of what was kept", async () => {
  using backend = await openBackend("cpu");
  using trainer = await openTrainer(tinyRecord({ model: { drop_rate: 0.3 } }), backend);
  const lossOf = async (...microBatches: typeof a[]) => {
    trainer.zeroGrad();
    return (await trainer.executeSchedule({ microBatches })).microBatches.map(({ loss }) => loss);
  };
  const [first, second] = await lossOf(a, a);
  assertEquals(await lossOf(a, a), [first, second]);
  assertNotEquals(first, second, "micro-batches of a step");
  const losses = new Set([first, second]);
  const state = trainer.state();
  for (let step = 1; step < 4; step++) {
    trainer.loadState({ ...state, step_count: step });
    (await lossOf(a, a)).forEach((loss) => losses.add(loss));
  }
  assertEquals(losses.size, 8, "steps");
  trainer.loadState(state);
  const { microBatches: [{ loss: whole }] } = await trainer.evaluate([a]);
  assert(!losses.has(whole), "evaluation drops nothing");
  assertEquals((await trainer.evaluate([a])).loss, whole);

  await lossOf(a);
  const gradients = await tensorsOf(trainer, "gradient"), { program } = trainer.model;
  for (const [name, values] of await tensorsOf(trainer)) {
    const gradient = gradients.get(name)!, length = Math.hypot(...gradient), step = 2e-3;
    const lossAt = async (distance: number) => {
      program.writeParameter("parameter", name, values.map((value, i) => value + distance * gradient[i] / length));
      return (await lossOf(a))[0];
    };
    const near = await lossAt(step) - await lossAt(-step), far = await lossAt(2 * step) - await lossAt(-2 * step);
    const slope = (8 * near - far) / (12 * step);
    program.writeParameter("parameter", name, values);
    assertAlmostEquals(slope, length, 1e-2 * length + 3e-4, name);
  }
});

Deno.test("executeSchedule() refuses a token outside the vocabulary, and more micro-batches than were planned for", async () => {
  using backend = await openBackend("cpu");
  using trainer = await openTrainer(tinyRecord(), backend);
  const wrong = { ...a, inputIds: a.inputIds.with(2, 17) };
  await assertRejects(() => takeStep(trainer, [wrong]), RangeError, "token id 17: model.vocab_size is 17");
  await assertRejects(() => takeStep(trainer, []), RangeError, "no micro-batches");
  await assertRejects(() => takeStep(trainer, [a, b, a]), RangeError, "more than were planned for");
  await assertRejects(() => takeStep(trainer, [drawnMicroBatch("c", [4])]), RangeError, "it takes 36 bytes, got 16");
});

Deno.test("a trainer takes exactly the memory that its plan estimates, and gives it back", async () => {
  const backend = openNullBackend();
  using _ = backend;
  for (const changes of [{}, { model: { checkpoint: 1 } }, { data: { micro_num: 5 } }]) {
    const trainer: Trainer = await openTrainer(tinyRecord(changes), backend);
    assertEquals(backend.allocatedBytes, trainer.model.memory.total);
    trainer[Symbol.dispose]();
    assertEquals(backend.allocatedBytes, 0);
  }
});
