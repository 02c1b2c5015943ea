import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { lossPlotSvg, type LossPoint, renderLossPlot } from "./loss_plot.ts";

const falling: LossPoint[] = Array.from({ length: 200 }, (_, step) => ({
  step,
  loss: 8 - step / 50,
  ...(step % 50 === 49 ? { validationLoss: 8.2 - step / 50 } : {}),
}));

/** Topmost row with a mark, for each column of a text chart that has one. */
function rowsOfMarks(chart: string): number[] {
  const lines = chart.split("\n").slice(1, -2).map((line) =>
    [...line].slice([...line].findIndex((c) => "│┤".includes(c)) + 1)
  );
  const rows: number[] = [];
  for (let column = 0; column < Math.max(...lines.map((line) => line.length)); column++) {
    const row = lines.findIndex((line) => (line[column] ?? " ") !== " ");
    if (row !== -1) rows.push(row);
  }
  return rows;
}

Deno.test("renderLossPlot() draws a falling loss from the upper left to the lower right, within its size", () => {
  for (const [width, height] of [[24, 5], [40, 10], [80, 20], [200, 50]]) {
    const chart = renderLossPlot(falling.map(({ step, loss }) => ({ step, loss })), { width, height });
    const lines = chart.split("\n");
    assertEquals(lines.length, height);
    assert(lines.every((line) => [...line].length <= width), chart);
    const rows = rowsOfMarks(chart);
    assertEquals([rows[0], rows.at(-1)], [0, height - 4]);
    assert(rows.every((row, i) => i === 0 || row >= rows[i - 1]), chart);
  }
});

Deno.test("renderLossPlot() labels its axes with round numbers and the ends of the run", () => {
  const chart = renderLossPlot(falling, { width: 60, height: 16 });
  for (const text of ["loss  ⠒⠒ train  ● validation", "8 ┤", "6 ┤", "5 ┤"]) assertStringIncludes(chart, text);
  const last = chart.split("\n").at(-1)!;
  assert(/^ +0 +step +199$/.test(last), last);
  assertEquals([...chart].filter((c) => c === "●").length, 5); // one is in the legend
});

Deno.test("renderLossPlot() and lossPlotSvg() bear runs of one step, of one value, of none and of no numbers", () => {
  const size = { width: 40, height: 8 };
  const nothing: LossPoint[] = [{ step: 1, loss: NaN }, { step: 2, validationLoss: Infinity }, { step: 3 }];
  assertEquals(renderLossPlot([], size), "no loss was recorded");
  assertEquals(renderLossPlot(nothing, size), "no loss was recorded");
  for (
    const points of [[{ step: 3, loss: 2 }], [{ step: 3, loss: 2 }, { step: 9, loss: 2 }], [{ step: 0, loss: -1e-9 }]]
  ) {
    assertEquals(rowsOfMarks(renderLossPlot(points, size)).length > 0, true);
    assert(!/NaN|Infinity/.test(renderLossPlot(points, size) + lossPlotSvg(points)));
  }
  for (const svg of [lossPlotSvg([]), lossPlotSvg(nothing)]) {
    assertStringIncludes(svg, "no loss was recorded");
    assert(!/NaN|Infinity/.test(svg));
  }
});

/** End points of the paths drawn in a colour. */
function pathsOf(svg: string, color: string): [number, number][][] {
  return [...svg.matchAll(/<path d="([^"]+)" [^>]*stroke="([^"]+)"/g)].filter(([, , stroke]) => stroke === color)
    .map(([, d]) => d.slice(1).split("L").map((pair) => pair.split(",").map(Number) as [number, number]));
}

Deno.test("lossPlotSvg() draws every point of a short run in its place", () => {
  const svg = lossPlotSvg([{ step: 0, loss: 4, validationLoss: 4 }, { step: 10, loss: 2 }, {
    step: 20,
    loss: 3,
    validationLoss: 2,
  }]);
  const [train] = pathsOf(svg, "#2563eb"), [validation] = pathsOf(svg, "#ea580c");
  assertEquals(train.length, 3);
  assertEquals(train[1][0], (train[0][0] + train[2][0]) / 2);
  assert(Math.abs(train[2][1] - (train[0][1] + train[1][1]) / 2) <= 0.1);
  assertEquals(validation, [train[0], [train[2][0], train[1][1]]]);
});

Deno.test("lossPlotSvg() smooths long runs without lag and keeps the file small", () => {
  const long = Array.from(
    { length: 50_000 },
    (_, step) => ({ step, loss: 8 - step / 10_000 + (step % 2 ? 0.1 : -0.1) }),
  );
  const svg = lossPlotSvg(long);
  assert(svg.length < 100_000, `${svg.length} bytes`);
  const [band, line] = pathsOf(svg, "#2563eb");
  assertEquals(band.length, line.length);
  const middle = Math.floor(line.length / 2);
  const straight = (line[0][1] + line.at(-1)![1]) / 2;
  assert(Math.abs(line[middle][1] - straight) < 5, `${line[middle][1]} instead of about ${straight}`);
});

Deno.test("lossPlotSvg() is well-formed whatever the title, and shows the reference", () => {
  const svg = lossPlotSvg(falling, { title: `a < b & "c"`, reference: { label: "unigram <6.4>", value: 6.4 } });
  assertStringIncludes(svg, "a &lt; b &amp; &quot;c&quot;");
  assertStringIncludes(svg, "unigram &lt;6.4&gt;");
  const open: string[] = [];
  for (const [, close, name, self] of svg.matchAll(/<(\/?)([a-z]+)[^>]*?(\/?)>/g)) {
    if (close) assertEquals(open.pop(), name);
    else if (!self) open.push(name);
  }
  assertEquals(open, []);
});
