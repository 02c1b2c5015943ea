/**
 * The data loader: reads batches ahead of need, in a worker of each data-parallel rank. Its position is handed out with
 * every batch, so what was read ahead and never used is simply read again after a restart.
 */
import { z } from "zod";
import {
  type Batch,
  createTrainLoader,
  type DataPosition,
  type TrainDataOptions,
  type TrainLoader,
} from "../src/data/mod.ts";
import { actor, protocol } from "./runtime/mod.ts";

/** Batches waiting for the rank; two, so that one is there while the next is made. */
const readAhead = 2;

const typed = <T>(name: string, of: abstract new (...args: never[]) => T) =>
  z.custom<T>((value) => value instanceof of, `expected ${name}`);

const positionSchema = z.custom<DataPosition>((value) => typeof value === "object" && value !== null);

const microBatchSchema = z.object({
  inputIds: typed("Uint32Array", Uint32Array<ArrayBuffer>),
  labels: typed("Int32Array", Int32Array<ArrayBuffer>),
  positions: typed("Uint32Array", Uint32Array<ArrayBuffer>),
  segmentStart: typed("Uint32Array", Uint32Array<ArrayBuffer>),
  segmentEnd: typed("Uint32Array", Uint32Array<ArrayBuffer>),
  typeIds: typed("Uint32Array", Uint32Array<ArrayBuffer>),
  segments: z.number(),
  longestSegment: z.number(),
});

const batchSchema: z.ZodType<Batch> = z.object({
  microBatches: z.array(microBatchSchema),
  rows: z.number(),
  globalRows: z.number(),
  tokens: z.number(),
  batchCount: z.number(),
  epoch: z.number(),
  skipped: z.boolean(),
  after: positionSchema,
});

export const dataLoaderProtocol = protocol({
  requests: {
    /** What there is to read. */
    describe: {
      ask: {},
      reply: z.object({
        rows: z.number(),
        batchesPerEpoch: z.number(),
        types: z.array(z.string()),
        /** Where the first batch begins. */
        begin: positionSchema,
      }),
    },
    /** The next batch in order. */
    next: { ask: {}, reply: batchSchema },
  },
});

export interface DataLoaderOptions {
  readonly data: TrainDataOptions;
  /** Where to go on from; what is left out is as at the beginning. */
  readonly position?: Partial<DataPosition>;
  readonly dataRank: number;
  readonly dataWorldSize: number;
  /** Whether the model runs in pipeline stages. @default {false} */
  readonly pipeline?: boolean;
}

interface State {
  readonly loader: TrainLoader | undefined;
  readonly begin: DataPosition | undefined;
  readonly ready: Batch[];
  /** What is wrong with the data. It would be wrong again next time. */
  fault: string | undefined;
}

/** Bad data is answered, with a refusal in one sentence; a disk that fails is a crash. */
export const dataLoader = ({ data, position, dataRank, dataWorldSize, pipeline }: DataLoaderOptions) =>
  actor({
    protocol: dataLoaderProtocol,
    internal: { fill: {} },
    initial(context): State {
      try {
        const loader = createTrainLoader(data, {
          dataRank,
          dataWorldSize,
          ...(pipeline === undefined ? {} : { pipeline }),
          // All read the same data, and say the same of it.
          ...(dataRank === 0 && { onNotice: (line: string) => context.log(line) }),
        });
        // Before the first batch there is nothing to go on with: a beginning counts over the ranks that there are.
        if (position?.batch_count) loader.load({ ...loader.state(), ...position });
        context.sendSelf({ kind: "fill" });
        return { loader, begin: loader.state(), ready: [], fault: undefined };
      } catch (error) {
        return { loader: undefined, begin: undefined, ready: [], fault: (error as Error).message };
      }
    },
    async handle(state, message, context) {
      const { loader, begin, ready } = state;
      switch (message.kind) {
        case "describe":
          if (!loader || !begin) message.reply.refuse(state.fault!);
          else {
            const { rows, batchesPerEpoch, datasetTypes } = loader;
            message.reply({ rows, batchesPerEpoch, types: [...datasetTypes], begin });
          }
          break;
        case "next":
          if (ready.length === 0) await fill(state);
          if (ready.length === 0) message.reply.refuse(state.fault!);
          else message.reply(ready.shift()!);
          context.sendSelf({ kind: "fill" });
          break;
        case "fill":
          if (ready.length >= readAhead || state.fault !== undefined) break;
          await fill(state);
          context.sendSelf({ kind: "fill" });
      }
      return state;
    },
    stopped: ({ loader }) => loader?.close(),
  });

/** Reads one more batch, or learns what is wrong with it. */
async function fill(state: State): Promise<void> {
  if (state.fault !== undefined) return;
  try {
    state.ready.push(await state.loader!.next());
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof RangeError || error instanceof TypeError)) throw error;
    state.fault = error.message;
  }
}
