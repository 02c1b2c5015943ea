/** The loss curve, as text for the terminal and as SVG for a page. */

/** A step may have either loss or both. What is not a finite number is left out. */
export interface LossPoint {
  readonly step: number;
  readonly loss?: number | undefined;
  readonly validationLoss?: number | undefined;
}

interface Series {
  readonly x: number[];
  readonly y: number[];
}

function seriesOf(points: readonly LossPoint[], key: "loss" | "validationLoss"): Series {
  const kept = points.filter((point) => Number.isFinite(point.step) && Number.isFinite(point[key]))
    .sort((a, b) => a.step - b.step);
  return { x: kept.map((point) => point.step), y: kept.map((point) => point[key]!) };
}

/** Round numbers from `least` to `most`, about `count` of them, and how many decimals they need. */
function ticks(least: number, most: number, count: number): { values: number[]; decimals: number } {
  const span = most - least || Math.abs(most) || 1;
  const rough = span / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough * 0.999)!;
  const values: number[] = [];
  for (let i = Math.ceil(least / step - 1e-9); i <= Math.floor(most / step + 1e-9); i++) values.push(i * step + 0); // never -0
  return { values, decimals: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

interface Range {
  readonly least: number;
  readonly most: number;
}

/** Widened, where all values are one, so that the line has somewhere to be. */
function rangeOf(values: readonly number[], pad: number): Range {
  let least = Infinity, most = -Infinity;
  for (const value of values) {
    least = Math.min(least, value);
    most = Math.max(most, value);
  }
  if (least === most) return { least: least - 0.5, most: most + 0.5 };
  return { least: least - pad * (most - least), most: most + pad * (most - least) };
}

/** Position of a value in its range, from 0 to 1. */
const place = (value: number, { least, most }: Range) => (value - least) / (most - least);

/** Means of the values that fall into each of `buckets` equal parts of the range; parts without any are left out. */
function bucketMeans({ x, y }: Series, range: Range, buckets: number): { bucket: number; mean: number }[] {
  const sums = new Float64Array(buckets), counts = new Uint32Array(buckets);
  x.forEach((step, i) => {
    const bucket = Math.min(buckets - 1, Math.floor(place(step, range) * buckets));
    sums[bucket] += y[i];
    counts[bucket]++;
  });
  return Array.from(counts, (count, bucket) => ({ bucket, count, mean: sums[bucket] / count }))
    .filter(({ count }) => count > 0);
}

// Text ---------------------------------------------------------------------------------------------------------------

const BRAILLE = 0x2800;
/** Bit of each dot of a braille character, by row and column. */
const DOTS = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];

/**
 * A chart of `width` by `height` characters at most: the training loss as a line of dots, validation as `●`.
 *
 * @example
 * ```ts
 * import { renderLossPlot } from "./loss_plot.ts";
 * const chart = renderLossPlot([{ step: 0, loss: 9 }, { step: 50, loss: 4 }], { width: 40, height: 8 });
 * console.assert(chart.split("\n").length === 8);
 * ```
 */
export function renderLossPlot(points: readonly LossPoint[], size: { width: number; height: number }): string {
  const train = seriesOf(points, "loss"), validation = seriesOf(points, "validationLoss");
  const steps = [...train.x, ...validation.x];
  if (steps.length === 0) return "no loss was recorded";
  const width = Math.max(24, Math.floor(size.width)), height = Math.max(5, Math.floor(size.height));
  const rows = height - 3; // below a legend, above the axis and its labels
  const x = rangeOf(steps, 0), y = rangeOf([...train.y, ...validation.y], 0);
  const { values: marks, decimals } = ticks(y.least, y.most, Math.max(2, Math.floor(rows / 3)));
  const labels = marks.map((mark) => mark.toFixed(decimals));
  const margin = Math.max(...labels.map((label) => label.length), 1) + 1;
  const columns = width - margin - 1;

  const canvas = Array.from({ length: rows }, () => new Uint8Array(columns));
  const dotRow = (value: number) => Math.round((1 - place(value, y)) * (rows * 4 - 1));
  const dot = (column: number, row: number) => {
    canvas[row >> 2][column >> 1] |= DOTS[row & 3][column & 1];
  };
  const means = bucketMeans(train, x, columns * 2).map(({ bucket, mean }) => [bucket, dotRow(mean)]);
  means.forEach(([column, row], i) => {
    dot(column, row);
    const [lastColumn, lastRow] = means[i - 1] ?? [column, row];
    const length = Math.max(column - lastColumn, Math.abs(row - lastRow));
    for (let k = 1; k < length; k++) {
      dot(
        Math.round(lastColumn + (column - lastColumn) * k / length),
        Math.round(lastRow + (row - lastRow) * k / length),
      );
    }
  });
  const cells = canvas.map((line) =>
    Array.from(line, (bits) => bits === 0 ? " " : String.fromCharCode(BRAILLE + bits))
  );
  for (const { bucket, mean } of bucketMeans(validation, x, columns)) cells[dotRow(mean) >> 2][bucket] = "●";

  const labelOfRow = new Map(marks.map((mark, i) => [dotRow(mark) >> 2, labels[i]]));
  const body = cells.map((line, row) => {
    const label = labelOfRow.get(row);
    return `${(label ?? "").padStart(margin - 1)} ${label === undefined ? "│" : "┤"}${line.join("")}`.trimEnd();
  });
  const legend = [train.x.length > 0 && "⠒⠒ train", validation.x.length > 0 && "● validation"].filter(Boolean);
  const first = String(Math.min(...rounded(x))), last = String(Math.max(...rounded(x)));
  const between = "step".padStart(Math.floor((columns - first.length - last.length + 4) / 2));
  return [
    `${"".padStart(margin)}loss  ${legend.join("  ")}`.slice(0, width),
    ...body,
    `${"".padStart(margin)}└${"─".repeat(columns)}`,
    `${"".padStart(margin + 1)}${first}${between.padEnd(columns - first.length - last.length)}${last}`,
  ].join("\n");
}

/** The ends of a range of steps: a run of one step has no half steps around it. */
function rounded({ least, most }: Range): [number, number] {
  return [Math.ceil(least), Math.floor(most)];
}

// SVG ----------------------------------------------------------------------------------------------------------------

export interface LossPlotSvgOptions {
  /** @default {"Loss"} */
  readonly title?: string;
  /** A horizontal line to compare with, such as the entropy of the text's unigrams. */
  readonly reference?: { readonly label: string; readonly value: number };
}

const SVG = { width: 840, height: 440, left: 72, right: 28, top: 64, bottom: 56 };
const INK = "#1f2937", MUTED = "#6b7280", GRID = "#e5e7eb", TRAIN = "#2563eb", VALIDATION = "#ea580c";
/** From this many points on, the line is smoothed and the points stay as a pale band behind it. */
const SMOOTH_FROM = 120;
/** As many as there are pixels to see them on. */
const MOST_POINTS = 1500;

/** Mean of the `reach` values on either side, fewer towards the ends, so that the line lags behind nowhere. */
function smooth(values: readonly number[], reach: number): number[] {
  const sums = [0];
  for (const value of values) sums.push(sums.at(-1)! + value);
  return values.map((_, i) => {
    const side = Math.min(reach, i, values.length - 1 - i);
    return (sums[i + side + 1] - sums[i - side]) / (2 * side + 1);
  });
}

const escape = (text: string) =>
  text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]!);

/**
 * A line chart to put on a page: axes, round ticks, title, training and validation loss. It names no outside resource.
 *
 * @example
 * ```ts
 * import { lossPlotSvg } from "./loss_plot.ts";
 * const svg = lossPlotSvg([{ step: 0, loss: 8 }, { step: 100, loss: 5, validationLoss: 5.2 }]);
 * console.assert(svg.startsWith("<svg") && svg.includes("validation"));
 * ```
 */
export function lossPlotSvg(points: readonly LossPoint[], options: LossPlotSvgOptions = {}): string {
  const { title = "Loss", reference } = options;
  const { width, height, left, right, top, bottom } = SVG;
  const train = seriesOf(points, "loss"), validation = seriesOf(points, "validationLoss");
  const steps = [...train.x, ...validation.x];
  const losses = [...train.y, ...validation.y, ...(reference ? [reference.value] : [])];
  const x = rangeOf(steps.length > 0 ? steps : [0, 1], 0);
  const y = rangeOf(losses.length > 0 ? losses : [0, 1], 0.04);
  const px = (step: number) => left + place(step, x) * (width - left - right);
  const py = (loss: number) => top + (1 - place(loss, y)) * (height - top - bottom);
  const n = (value: number) => String(Number(value.toFixed(1)));
  const at = (step: number, loss: number) => `${n(px(step))},${n(py(loss))}`;
  const path = (series: Series) => series.x.map((step, i) => `${i === 0 ? "M" : "L"}${at(step, series.y[i])}`).join("");
  const text = (tx: number, ty: number, content: string, more = "") =>
    `<text x="${n(tx)}" y="${n(ty)}"${more && " " + more}>${escape(content)}</text>`;
  const line = (x1: number, y1: number, x2: number, y2: number, more: string) =>
    `<line x1="${n(x1)}" y1="${n(y1)}" x2="${n(x2)}" y2="${n(y2)}" ${more}/>`;

  const out = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" ` +
    `font-family="system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif" font-size="13" fill="${MUTED}" ` +
    `role="img" aria-label="${escape(title)}">`,
    `<rect width="${width}" height="${height}" rx="8" fill="#ffffff"/>`,
    text(left, 34, title, `font-size="18" font-weight="600" fill="${INK}"`),
  ];
  const yTicks = ticks(y.least, y.most, 6), xTicks = ticks(x.least, x.most, 8);
  for (const value of yTicks.values) {
    out.push(line(left, py(value), width - right, py(value), `stroke="${GRID}"`));
    out.push(text(left - 10, py(value) + 4.5, value.toFixed(yTicks.decimals), 'text-anchor="end"'));
  }
  for (const value of xTicks.values.filter(Number.isInteger)) {
    out.push(line(px(value), height - bottom, px(value), height - bottom + 5, `stroke="${MUTED}"`));
    out.push(text(px(value), height - bottom + 21, value.toLocaleString("en-US"), 'text-anchor="middle"'));
  }
  out.push(line(left, height - bottom, width - right, height - bottom, `stroke="${MUTED}"`));
  out.push(text((left + width - right) / 2, height - 12, "step", 'text-anchor="middle"'));
  out.push(
    text(
      20,
      (top + height - bottom) / 2,
      "loss",
      `text-anchor="middle" transform="rotate(-90 22 ${n((top + height - bottom) / 2)})"`,
    ),
  );

  if (reference) {
    out.push(
      line(left, py(reference.value), width - right, py(reference.value), `stroke="${MUTED}" stroke-dasharray="5 4"`),
    );
    out.push(text(width - right - 4, py(reference.value) - 7, reference.label, 'text-anchor="end"'));
  }
  const stroke = (color: string, wide: number) =>
    `fill="none" stroke="${color}" stroke-width="${wide}" stroke-linejoin="round" stroke-linecap="round"`;
  if (train.x.length >= SMOOTH_FROM) {
    const every = Math.ceil(train.x.length / MOST_POINTS);
    const thin = (series: Series): Series => ({
      x: series.x.filter((_, i) => i % every === 0 || i === series.x.length - 1),
      y: series.y.filter((_, i) => i % every === 0 || i === series.y.length - 1),
    });
    const smoothed = { x: train.x, y: smooth(train.y, Math.round(train.x.length / 80)) };
    out.push(`<path d="${path(thin(train))}" ${stroke(TRAIN, 1)} stroke-opacity="0.28"/>`);
    out.push(`<path d="${path(thin(smoothed))}" ${stroke(TRAIN, 2)}/>`);
  } else if (train.x.length > 1) {
    out.push(`<path d="${path(train)}" ${stroke(TRAIN, 2)}/>`);
  } else if (train.x.length === 1) {
    out.push(`<circle cx="${n(px(train.x[0]))}" cy="${n(py(train.y[0]))}" r="3.5" fill="${TRAIN}"/>`);
  }
  if (validation.x.length > 0) {
    out.push(`<path d="${path(validation)}" ${stroke(VALIDATION, 2)}/>`);
    if (validation.x.length <= 60) {
      validation.x.forEach((step, i) =>
        out.push(
          `<circle cx="${n(px(step))}" cy="${n(py(validation.y[i]))}" r="3.5" fill="${VALIDATION}" stroke="#ffffff"/>`,
        )
      );
    }
  }

  const legend: [string, string, number | undefined][] = [
    ["train", TRAIN, train.y.at(-1)],
    ["validation", VALIDATION, validation.y.at(-1)],
  ];
  let end = width - right;
  for (const [name, color, last] of legend.filter(([, , last]) => last !== undefined).reverse()) {
    const label = `${name} ${last!.toFixed(2)}`;
    out.push(text(end, 34, label, `text-anchor="end" fill="${INK}"`));
    const begin = end - label.length * 7.4 - 8;
    out.push(line(begin - 20, 29.5, begin, 29.5, `stroke="${color}" stroke-width="3" stroke-linecap="round"`));
    end = begin - 40;
  }
  if (steps.length === 0) {
    out.push(text(width / 2, (top + height - bottom) / 2, "no loss was recorded", 'text-anchor="middle"'));
  }
  return out.join("\n") + "\n</svg>\n";
}
