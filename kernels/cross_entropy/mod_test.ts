import { assertEquals, assertThrows } from "@std/assert";
import { checkKernel, compare, finiteDifference, floatTypes, randomNormal, randomUniform } from "../testing.ts";
import { crossEntropyBackward, crossEntropyForward, crossEntropyMerge, crossEntropyStatistics } from "./mod.ts";

const drawLabels = (rows: number, columns: number) =>
  Array.from(randomUniform(rows, 7), (u, row) => row % 5 === 3 ? -100 : Math.floor(u * columns));

for (const software of [true, false]) {
  for (const type of floatTypes) {
    Deno.test(`cross entropy kernels match their references in ${type}, software ${software}`, async () => {
      const shapes = [[1, 1], [1, 6], [4, 4], [37, 13], [18, 260], [3, 5003]];
      for (const [i, [rows, columns]] of shapes.entries()) {
        // Texts take long to compile here: a form has one of the half types at a shape, at the one after the next the other;
        // and every other shape is smoothed, of the next type the others.
        const turn = floatTypes.indexOf(type) + Number(software);
        if (type !== "f32" && ((i >> 1) + turn) % 2 !== 0) continue;
        const labelSmoothing = (i + turn) % 2 === 0 ? 0 : 0.1;
        const logits = randomNormal(rows * columns, 1).map((value) => 4 * value), labels = drawLabels(rows, columns);
        const options = { traits: { software } };
        const sizes = { rows, columns, labelSmoothing, type };
        const { expected } = await checkKernel(crossEntropyForward(sizes), { logits, labels }, options);
        const { logSumExp } = expected;
        await checkKernel(crossEntropyBackward(sizes), { logits, labels, logSumExp, weight: [0.7] }, options);
      }
    });
  }

  Deno.test(`crossEntropyForward() counts the first of equal maxima, software ${software}`, async () => {
    const columns = 600, rows = 4;
    const logits = new Float32Array(rows * columns);
    for (let row = 0; row < rows; row++) for (const c of [597, 130, 131]) logits[row * columns + c] = 5;
    const kernel = crossEntropyForward({ rows, columns, labelSmoothing: 0 });
    const { outputs } = await checkKernel(kernel, { logits, labels: [130, 131, 597, -1] }, { traits: { software } });
    assertEquals([...outputs.correct], [1, 0, 0, 0]);
  });

  Deno.test(`crossEntropyForward() holds for logits of any size, software ${software}`, async () => {
    const logits = [-3e38, 3e38, 0, 0, 88.8, 89, 700, -700, -1e30, -1e30, -1e30, -1e30];
    const { outputs } = await checkKernel(
      crossEntropyForward({ rows: 3, columns: 4, labelSmoothing: 0 }),
      { logits, labels: [1, 2, 3] },
      { traits: { software } },
    );
    assertEquals([...outputs.correct], [1, 1, 0]);
  });
}

for (const fault of [NaN, Infinity]) {
  Deno.test(`cross entropy kernels give NaN for a row with a logit of ${fault}, and for it alone`, async () => {
    const weight = [1], labels = [0, 1];
    for (const software of [true, false]) {
      const options = { traits: { software }, tolerance: Infinity };
      for (const columns of [5, 8]) {
        const sizes = { rows: 2, columns, labelSmoothing: 0 }, logits = randomNormal(2 * columns, 1);
        logits[2] = fault;
        const { loss, logSumExp } =
          (await checkKernel(crossEntropyForward(sizes), { logits, labels }, options)).outputs;
        assertEquals([...loss].map(Number.isNaN), [true, false]);
        const back = await checkKernel(crossEntropyBackward(sizes), { logits, labels, logSumExp, weight }, options);
        assertEquals([...back.outputs.logits].map(Number.isNaN), [...logits].map((_, i) => i < columns));
        const statistics = crossEntropyStatistics({ rows: 2, columns, firstColumn: 0 });
        const told = (await checkKernel(statistics, { logits, labels }, options)).outputs.statistics;
        const merge = crossEntropyMerge({ rows: 2, parts: 1, vocabulary: columns, labelSmoothing: 0 });
        const merged = await checkKernel(merge, { statistics: told, labels }, options);
        assertEquals([...merged.outputs.loss].map(Number.isNaN), [true, false]);
      }
    }
  });
}

Deno.test("cross entropy kernels ignore labels past the vocabulary", async () => {
  const logits = randomNormal(15, 1),
    labels = [5, 2, 2_000_000_000],
    sizes = { rows: 3, columns: 5, labelSmoothing: 0.2 };
  const { outputs, expected: { logSumExp } } = await checkKernel(crossEntropyForward(sizes), { logits, labels });
  assertEquals([outputs.loss[0], outputs.nll[2]], [0, 0]);
  const backward = await checkKernel(crossEntropyBackward(sizes), { logits, labels, logSumExp, weight: [1] });
  assertEquals([...backward.outputs.logits.slice(0, 5)], [0, 0, 0, 0, 0]);
});

Deno.test("crossEntropyBackward() matches finite differences", () => {
  const rows = 4, columns = 6, weight = new Float64Array([0.3]), labels = new Int32Array([5, 0, -100, 2]);
  for (const labelSmoothing of [0, 0.15]) {
    const sizes = { rows, columns, labelSmoothing };
    const logSumExp = new Float64Array(rows);
    const loss = (logits: Float64Array) => {
      const losses = new Float64Array(rows);
      crossEntropyForward(sizes).reference([
        logits,
        labels,
        losses,
        new Float64Array(rows),
        logSumExp,
        new Uint32Array(rows),
      ]);
      return weight[0] * losses.reduce((sum, value) => sum + value, 0);
    };
    const logits = new Float64Array(randomNormal(rows * columns, 1));
    const numeric = finiteDifference(loss, logits);
    loss(logits);
    crossEntropyBackward(sizes).reference([logits, labels, logSumExp, weight]);
    assertEquals(compare("logits", logits, numeric, 1e-6).fault, undefined);
  }
});

Deno.test("crossEntropyForward() refuses a smoothing outside [0, 1)", () => {
  assertThrows(
    () => crossEntropyForward({ rows: 1, columns: 1, labelSmoothing: 1 }),
    RangeError,
    "labelSmoothing must be at least 0 and below 1, current value is 1",
  );
});

/** Columns `first` up to `first + count` of every row. */
const cut = (logits: Float32Array, rows: number, columns: number, first: number, count: number) =>
  Float32Array.from({ length: rows * count }, (_, i) => logits[Math.floor(i / count) * columns + first + i % count]);

for (const software of [true, false]) {
  Deno.test(`cross entropy of a divided vocabulary is that of the whole, software ${software}`, async () => {
    const options = { traits: { software } };
    for (const [i, [rows, columns, parts]] of [[1, 2, 2], [7, 12, 3], [37, 520, 4]].entries()) {
      const labelSmoothing = (i + Number(software)) % 2 === 0 ? 0.1 : 0;
      const logits = randomNormal(rows * columns, 1).map((value) => 4 * value), labels = drawLabels(rows, columns);
      const own = columns / parts,
        ranks = Array.from({ length: parts }, (_, part) => cut(logits, rows, columns, part * own, own));
      const statistics: number[] = [];
      for (const [part, logits] of ranks.entries()) {
        const kernel = crossEntropyStatistics({ rows, columns: own, firstColumn: part * own });
        statistics.push(...(await checkKernel(kernel, { logits, labels }, options)).outputs.statistics);
      }
      const merge = crossEntropyMerge({ rows, parts, vocabulary: columns, labelSmoothing });
      const { outputs } = await checkKernel(merge, { statistics, labels }, options);
      const whole = await checkKernel(crossEntropyForward({ rows, columns, labelSmoothing }), { logits, labels });
      assertEquals(outputs.correct, whole.outputs.correct);
      for (const name of ["loss", "nll", "logSumExp"] as const) {
        assertEquals(compare(name, outputs[name], whole.expected[name], 1e-5).fault, undefined);
      }
      const { logSumExp } = whole.expected, weight = [0.7];
      const sizes = { rows, labelSmoothing };
      const gradient = await checkKernel(crossEntropyBackward({ ...sizes, columns }), {
        logits,
        labels,
        logSumExp,
        weight,
      });
      for (const [part, logits] of ranks.entries()) {
        const kernel = crossEntropyBackward({ ...sizes, columns: own, firstColumn: part * own, vocabulary: columns });
        const { outputs } = await checkKernel(kernel, { logits, labels, logSumExp, weight }, options);
        const expected = cut(gradient.expected.logits as Float32Array, rows, columns, part * own, own);
        assertEquals(compare("logits", outputs.logits, expected, 1e-5).fault, undefined);
      }
    }
  });
}

for (const type of floatTypes) {
  Deno.test(`crossEntropyStatistics() of ${type} logits joins those of the columns before, odd parts`, async () => {
    const rows = 5, columns = 301;
    const logits = randomNormal(rows * columns, 3).map((value) => 4 * value), labels = drawLabels(rows, columns);
    let statistics: number[] = [], next = 0;
    for (const count of [96, 192, 13]) {
      const kernel = crossEntropyStatistics({ rows, columns: count, firstColumn: next, joins: next > 0, type });
      const part = { logits: cut(logits, rows, columns, next, count), labels, ...(next > 0 && { statistics }) };
      statistics = [...(await checkKernel(kernel, part)).outputs.statistics];
      next += count;
    }
    const whole = crossEntropyStatistics({ rows, columns, firstColumn: 0, type });
    const { expected } = await checkKernel(whole, { logits, labels });
    assertEquals(compare("statistics", statistics, expected.statistics, 1e-5).fault, undefined);
  });
}

Deno.test("crossEntropyMerge() counts the first of equal maxima, across ranks too", async () => {
  const statistics = [5, 1, 2, 8, 5, /* */ 5, 2, 1, 7, 0]; // two parts of two columns, one row; both have a 5
  for (const [label, correct] of [[1, 1], [2, 0]]) {
    const kernel = crossEntropyMerge({ rows: 1, parts: 2, vocabulary: 4, labelSmoothing: 0 });
    const { outputs } = await checkKernel(kernel, { statistics, labels: [label] });
    assertEquals([...outputs.correct], [correct]);
  }
});

Deno.test("crossEntropyStatistics() refuses places that are no float32", () => {
  assertThrows(() => crossEntropyStatistics({ rows: 1, columns: 8, firstColumn: 2 ** 24 }), RangeError, "past 2^24");
});
