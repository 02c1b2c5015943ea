/** A timeline of stages, for eyes: as a drawing (SVG) and in Chrome's trace format. */
import type { Pass } from "./schedule.ts";
import type { TimedRun, Timeline } from "./simulate.ts";

/** Fill of each pass; the text on it is dark. */
const colours: Readonly<Record<Pass, string>> = {
  "forward": "#8ecae6",
  "backward": "#95d5b2",
  "backward input": "#95d5b2",
  "backward weight": "#ffd166",
};

const passes = Object.keys(colours) as Pass[];
const round = (value: number) => Number(value.toFixed(2));

/** Later chunks of a stage are darker, so that one sees which piece of the model a pass belongs to. */
function shade(colour: string, chunk: number, chunks: number): string {
  const factor = chunks === 1 ? 1 : 1 - 0.22 * chunk / (chunks - 1);
  const parts = [1, 3, 5].map((at) => Math.round(parseInt(colour.slice(at, at + 2), 16) * factor));
  return `#${parts.map((part) => part.toString(16).padStart(2, "0")).join("")}`;
}

export interface DrawingOptions {
  readonly title: string;
  /** Pixels of one second. @default {what makes the drawing 960 pixels wide} */
  readonly scale?: number;
}

/**
 * One row a stage, time to the right, the number of its micro-batch in each pass.
 *
 * @example
 * ```ts
 * import { drawTimeline } from "./draw.ts";
 * import { zeroBubbleH1 } from "./zero_bubble.ts";
 * import { simulate } from "./simulate.ts";
 * const schedules = [0, 1].map((stage) => zeroBubbleH1({ stages: 2, microBatches: 4 }, stage));
 * console.assert(drawTimeline(simulate(schedules, { run: () => 1 }), { title: "ZB-H1" }).startsWith("<svg"));
 * ```
 */
export function drawTimeline(timeline: Timeline, { title, scale }: DrawingOptions): string {
  const { runs, seconds, stages, bubble } = timeline;
  const left = 64, top = 34, rowHeight = 26, legend = 30, perSecond = scale ?? 880 / Math.max(seconds, 1e-12);
  const width = Math.ceil(left + seconds * perSecond + 16), height = top + stages * rowHeight + legend;
  const chunks = 1 + Math.max(0, ...runs.map(({ chunk }) => chunk));
  const seen = passes.filter((pass) => runs.some(({ segment }) => segment === pass));

  const cell = ({ stage, segment, chunk, microBatch, start, end }: TimedRun) => {
    const x = round(left + start * perSecond), y = top + stage * rowHeight, w = round((end - start) * perSecond);
    const label = w < 9
      ? ""
      : `<text x="${round(x + w / 2)}" y="${y + 17}" text-anchor="middle">${microBatch + 1}</text>`;
    return `<rect x="${x}" y="${y}" width="${w}" height="${rowHeight - 4}" fill="${
      shade(colours[segment], chunk, chunks)
    }" stroke="#444" stroke-width="0.5"/>${label}`;
  };
  const key = seen.map((pass, index) => {
    const x = left + index * 150, y = top + stages * rowHeight + 8;
    return `<rect x="${x}" y="${y}" width="12" height="12" fill="${colours[pass]}" stroke="#444" stroke-width="0.5"/>` +
      `<text x="${x + 18}" y="${y + 10}">${pass}</text>`;
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" ` +
    `font-family="system-ui, sans-serif" font-size="11" fill="#222">`,
    `<rect width="${width}" height="${height}" fill="#fff"/>`,
    `<text x="${left}" y="20" font-size="14">${escape(title)}: ${(100 * bubble).toFixed(1)} % idle</text>`,
    ...Array.from({ length: stages }, (_, stage) => [
      `<text x="8" y="${top + stage * rowHeight + 16}">stage ${stage}</text>`,
      `<rect x="${left}" y="${top + stage * rowHeight}" width="${round(seconds * perSecond)}" ` +
      `height="${rowHeight - 4}" fill="#eee"/>`,
    ]).flat(),
    ...runs.map(cell),
    ...key,
    "</svg>",
    "",
  ].join("\n");
}

const escape = (text: string) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

/** Events for `chrome://tracing` or https://ui.perfetto.dev: a process a stage, passes and messages on lanes of their own. */
export function traceTimeline({ runs, messages, stages }: Timeline): object[] {
  const lanes = ["passes", "messages out"];
  return [
    ...Array.from({ length: stages }, (_, pid) => [
      { ph: "M", name: "process_name", pid, tid: 0, args: { name: `stage ${pid}` } },
      ...lanes.map((name, lane) => ({ ph: "M", name: "thread_name", pid, tid: lane + 1, args: { name } })),
    ]).flat(),
    ...runs.map(({ stage, segment, microBatch, chunk, frame, start, end }) => ({
      ph: "X",
      name: `${segment} ${microBatch}`,
      pid: stage,
      tid: 1,
      ts: start * 1e6,
      dur: (end - start) * 1e6,
      args: { microBatch, chunk, frame },
    })),
    ...messages.filter(({ start, end }) => end > start).map((
      { stage, carries, microBatch, chunk, peer, start, end },
    ) => ({
      ph: "X",
      name: `${carries} ${microBatch} to stage ${peer}`,
      pid: stage,
      tid: 2,
      ts: start * 1e6,
      dur: (end - start) * 1e6,
      args: { microBatch, chunk, peer },
    })),
  ];
}
