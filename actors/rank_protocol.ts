/** What a rank may be asked. Apart from the rank, so that who asks need not load model, device and trainer. */
import { z } from "zod";
import type { LoadPath } from "../src/checkpoint/mod.ts";
import type { ResolvedConfig } from "../src/config/mod.ts";
import { checkpointManagerProtocol } from "./checkpoint_manager.ts";
import { meetingSchema } from "./communicator.ts";
import { monitorProtocol } from "./monitor.ts";
import { protocol, refTo } from "./runtime/mod.ts";

const trainedSchema = z.object({
  outcome: z.enum(["finished", "stopped", "failed"]),
  step: z.number(),
  /** What is wrong with the data, where that ended it. */
  problem: z.string().optional(),
  /** Why the last checkpoint could not be written, where one was due. */
  unsaved: z.string().optional(),
});
export type Trained = z.output<typeof trainedSchema>;

const memorySchema = z.record(z.string(), z.number());

const initialisedSchema = z.object({
  /** Steps done. */
  step: z.number(),
  /** Batches consumed. */
  batch: z.number(),
  /** What was loaded from where, when it was `load`. */
  loaded: z.string().optional(),
  parameters: z.number(),
  memory: memorySchema,
  device: z.string(),
  software: z.boolean(),
  rows: z.number(),
});
export type Initialised = z.output<typeof initialisedSchema>;

export const rankProtocol = protocol({
  requests: {
    /** Makes model and optimizer, takes a checkpoint where there is one, and opens the data. Refused with a sentence. */
    initialise: {
      ask: {
        config: z.custom<ResolvedConfig>((value) => typeof value === "object" && value !== null),
        /** Folder of a verified checkpoint of the run itself, to go on from. */
        checkpoint: z.string().nullable(),
        /** What else to begin from, where there is no such checkpoint; null for fresh weights. */
        load: z.custom<LoadPath>((value) => typeof value === "object" && value !== null).nullable(),
        /** Folder of the run's records, kept in checkpoints so that a resumed run goes on in it. */
        runFolder: z.string(),
        /** Whether the CPU may compute where no adapter answers. */
        cpuFallback: z.boolean(),
        monitor: refTo(monitorProtocol),
        checkpoints: refTo(checkpointManagerProtocol),
        /** Which rank of how many this one is; where and how the others are met, if there are any. */
        place: z.object({
          rank: z.number(),
          world: z.number(),
          attempt: z.number(),
          meeting: meetingSchema.nullable(),
        }),
      },
      reply: initialisedSchema,
    },
    /** Trains to the end, or until told to stop. */
    train: { ask: {}, reply: trainedSchema },
  },
  commands: {
    /** Save and end, after the step under way. */
    stop: {},
  },
});
