/**
 * The monitor: what people and tools get to see of a run. It writes the metrics, draws the display, and raises alerts.
 * It outlives the ranks' crashes, so the curve has every step once however often they start again. What it knows of the
 * steps done stands in its metrics file, so one that takes the place of another goes on from there, and so does the curve
 * of a run that is resumed.
 */
import { z } from "zod";
import { fileError } from "../src/checkpoint/durable.ts";
import { LossSpikeDetector, StuckDetector } from "../src/observe/alerts.ts";
import { Display } from "../src/observe/display.ts";
import { JsonLinesWriter, readJsonLines } from "../src/observe/jsonl.ts";
import { lossPlotSvg, type LossPoint, renderLossPlot } from "../src/observe/loss_plot.ts";
import { createLogger, fileSink, type Logger } from "../src/observe/logger.ts";
import { copyFolder, rankFileName, type RunFolder } from "../src/observe/run_folder.ts";
import { recordLine } from "../src/observe/step_record.ts";
import { TensorBoardWriter } from "../src/observe/tensorboard.ts";
import { actor, protocol } from "./runtime/mod.ts";

/** A record of metrics by name. */
const recordSchema = z.record(z.string(), z.union([z.number(), z.nan(), z.record(z.string(), z.number())]));
const anyNumber = z.union([z.number(), z.nan(), z.literal(Infinity), z.literal(-Infinity)]);

const curveSchema = z.object({
  /** As text. */
  drawn: z.string().optional(),
  /** The file that has it as a picture, if it could be written. */
  file: z.string().optional(),
});
export type Curve = z.output<typeof curveSchema>;

export const monitorProtocol = protocol({
  commands: {
    /** Training begins, or begins again after a failure, with this many steps done. */
    begin: { step: z.number(), batch: z.number() },
    /** A step is done. */
    step: {
      step: z.number(),
      batch: z.number(),
      loss: anyNumber,
      gradNorm: anyNumber,
      learningRate: z.number(),
      tokensPerSecond: z.number(),
      memory: z.number(),
      success: z.boolean(),
      record: recordSchema.optional(),
    },
    /** What the run is busy with besides steps: "starting", "evaluating", "saving". */
    phase: { name: z.string() },
    validation: {
      step: z.number(),
      batch: z.number(),
      records: z.array(z.object({ loss: z.number(), record: recordSchema })),
    },
    /** A sentence for people. */
    notice: { text: z.string() },
    /** A line for the log file alone. */
    log: { text: z.string() },
    /** A sentence that people should act on. */
    alert: { text: z.string() },
  },
  requests: {
    /** Steps done, as far as was told. */
    progress: { ask: {}, reply: z.object({ step: z.number() }) },
    /** Writes everything out and draws the curve; the last thing asked of a monitor. */
    finish: { ask: {}, reply: curveSchema },
  },
});

export interface TensorBoardSettings {
  /** Ranks have their event files in folders of their own below it. @default the run folder's */
  readonly folder?: string | null;
  /** The folder of a run that this one continues: its event files come first. */
  readonly resumeFrom?: string | null;
  /** Steps that are held before they are written. @default {1} */
  readonly queueMaxLength?: number;
  /** Shown under "Text", as they are. */
  readonly texts?: Readonly<Record<string, string>>;
}

export interface MonitorOptions {
  readonly folder: RunFolder;
  readonly totalSteps: number;
  readonly title: string;
  readonly json: boolean;
  /** TensorBoard's event files; absent for none. */
  readonly tensorboard?: TensorBoardSettings | undefined;
  readonly display?: Display;
  /** It takes the place of one that ended, and goes on after the last line of metrics. @default {false} */
  readonly continues?: boolean;
  /** Called with every alert, besides showing it. */
  readonly onAlert?: (text: string) => void;
}

interface State {
  readonly display: Display;
  readonly logger: Logger;
  readonly logFile: Disposable | undefined;
  lines: JsonLinesWriter | undefined;
  board: TensorBoardWriter | undefined;
  points: LossPoint[];
  readonly spikes: LossSpikeDetector;
  readonly stuck: StuckDetector;
  validationLoss: number | undefined;
  /** What the run is busy with besides steps. */
  phase: string | undefined;
  shown: {
    step: number;
    loss?: number;
    gradNorm?: number;
    learningRate?: number;
    tokensPerSecond?: number;
    memory?: number;
  };
}

export const monitor = (options: MonitorOptions) => {
  const { folder, totalSteps, title, json, tensorboard, continues = false, onAlert } = options;
  const eventsOf = (settings: TensorBoardSettings) => settings.folder ?? folder.tensorboards;
  const alert = ({ display, logger }: State, text: string) => {
    display.message(`ALERT ${text}`);
    logger.warning(text);
    onAlert?.(text);
  };
  /** Goes on after so many steps and batches: what was written of later ones is cut off. */
  const begin = (state: State, { step, batch }: { step: number; batch: number }): void => {
    const { display } = state, onError = (text: string) => alert(state, text);
    closeWriters(state);
    state.points = state.points.filter((point) => point.step <= step);
    state.lines = attempt(display, "write metrics to", folder.metrics, (path) => {
      const lines = new JsonLinesWriter(path, { resumeStep: batch, onError });
      state.points = Array.from(readJsonLines(path), pointOf);
      return lines;
    });
    state.board = tensorboard && attempt(display, "write event files to", eventsOf(tensorboard), (events) => {
      const { queueMaxLength = 1, texts = {} } = tensorboard;
      const board = new TensorBoardWriter({
        folder: `${events}/${mainRank}`,
        purgeStep: step,
        queueMaxLength,
        totalSteps,
        onError,
      });
      for (const [tag, text] of Object.entries(texts)) board.addText(tag, text);
      board.flush();
      return board;
    });
    state.shown = { step };
  };
  return actor({
    protocol: monitorProtocol,
    internal: { check: {} },
    initial(context): State {
      context.every(30_000, { kind: "check" });
      const shown = options.display ?? new Display({ json });
      const logFile = attempt(shown, "write log file", `${folder.logs}/${mainRank}`, fileSink);
      const resumeFrom = tensorboard?.resumeFrom;
      if (resumeFrom && !continues) {
        const to = eventsOf(tensorboard);
        attempt(shown, "copy the event files of resume_tb_folder", resumeFrom, (from) => copyFolder(from, to));
      }
      const state: State = {
        display: shown,
        logger: createLogger({ sinks: logFile ? [logFile] : [] }),
        logFile,
        lines: undefined,
        board: undefined,
        points: [],
        spikes: new LossSpikeDetector(),
        stuck: new StuckDetector({ now: () => context.now() }),
        validationLoss: undefined,
        phase: undefined,
        shown: { step: 0 },
      };
      if (continues) begin(state, lastOf(folder.metrics));
      return state;
    },
    handle(state, message) {
      const { display, logger } = state;
      const show = (phase?: string) => {
        state.phase = phase;
        display.update({
          ...state.shown,
          totalSteps,
          validationLoss: state.validationLoss,
          ...(phase ? { phase } : {}),
        });
      };
      switch (message.kind) {
        case "begin":
          begin(state, message);
          show("first step"); // which compiles kernels, and may take long
          break;
        case "step": {
          const { kind: _, record, ...rest } = message;
          const entry = { ...record, ...rest, step: message.batch, step_count: message.step };
          state.lines?.write(entry);
          display.record(entry);
          if (record) logger.info(recordLine(record));
          for (const [name, value] of Object.entries(record ?? {})) {
            if (typeof value === "number") state.board?.addScalar(name, value, message.step);
            else state.board?.addScalars(name, value, message.step);
          }
          state.points.push({ step: message.step, loss: message.loss });
          state.shown = message;
          state.stuck.active(message.step);
          const spike = state.spikes.check(message.step, message.loss);
          if (spike) alert(state, spike);
          if (!message.success) {
            const { batch, step } = message;
            alert(
              state,
              `Batch ${batch}: the gradient is not finite, and nothing was updated; the run stays at step ${step}`,
            );
          }
          show();
          break;
        }
        case "phase":
          state.stuck.active(state.shown.step);
          show(message.name);
          break;
        case "validation": {
          for (const { loss, record } of message.records) {
            const entry = { ...record, step: message.batch, step_count: message.step };
            state.lines?.write(entry);
            display.record(entry);
            for (const [name, value] of Object.entries(record)) {
              if (typeof value === "number" && name !== "step") state.board?.addScalar(name, value, message.step);
            }
            state.validationLoss = loss;
            state.points.push({ step: message.step, validationLoss: loss });
          }
          const line = validationLine(message.step, message.records.map(({ record }) => record));
          display.message(line);
          logger.info(line);
          break;
        }
        case "notice":
          display.message(message.text);
          logger.info(message.text);
          break;
        case "log":
          logger.info(message.text);
          break;
        case "alert":
          alert(state, message.text);
          break;
        case "check": {
          const text = state.stuck.check();
          if (text) alert(state, text);
          if (state.phase) show(state.phase); // a log would be still while one goes on
          break;
        }
        case "progress":
          message.reply({ step: state.shown.step });
          break;
        case "finish": {
          closeWriters(state);
          const { points } = state;
          let written = false;
          if (points.length < 2) {
            message.reply({});
            break;
          }
          try {
            Deno.writeTextFileSync(folder.lossPlot, lossPlotSvg(points, { title }));
            written = true;
          } catch (error) {
            alert(state, fileError("write", folder.lossPlot, error).message); // no reason to lose the rest
          }
          const drawn = renderLossPlot(points, { width: Math.min(display.columns, 78), height: 14 });
          message.reply({ drawn, ...(written ? { file: folder.lossPlot } : {}) });
        }
      }
      return state;
    },
    async stopped(state) {
      closeWriters(state);
      state.logFile?.[Symbol.dispose]();
      state.display[Symbol.dispose]();
      await state.display.flushed(); // what is printed after this one ended comes after what it showed
    },
  });
};

/** The rank whose log and event files these are: the first of all, as there is one. */
const mainRank = rankFileName({ dp: 0, tp: 0, pp: 0, main: true });

/** A line of metrics, as a point of the curve: of a step, or of a validation. */
function pointOf(entry: Readonly<Record<string, unknown>>): LossPoint {
  const validation = Object.keys(entry).find((name) => /^val\/.*_loss$/.test(name));
  const step = Number(entry.step_count), loss = entry[validation ?? "loss"] as number | undefined;
  return validation === undefined ? { step, loss } : { step, validationLoss: loss };
}

/** Where a run is whose metrics these are. */
function lastOf(metrics: string): { step: number; batch: number } {
  let at = { step: 0, batch: 0 };
  for (const { step, step_count } of readJsonLines(metrics)) {
    if (typeof step === "number" && typeof step_count === "number") at = { step: step_count, batch: step + 1 };
  }
  return at;
}

/** What cannot be written is told; a run goes on without it. */
function attempt<T>(display: Display, what: string, path: string, write: (path: string) => T): T | undefined {
  try {
    return write(path);
  } catch (error) {
    display.message(`ALERT ${fileError(what, path, error).message}`);
  }
}

function closeWriters(state: State): void {
  state.lines?.[Symbol.dispose]();
  state.board?.[Symbol.dispose]();
  state.lines = state.board = undefined;
}

function validationLine(step: number, records: readonly Record<string, unknown>[]): string {
  const fields = records.flatMap((record) => Object.entries(record).filter(([name]) => name !== "step"));
  return `Validation at step ${step}: ` +
    fields.map(([name, value]) => `${name}=${(value as number).toFixed(4)}`).join(" ");
}
