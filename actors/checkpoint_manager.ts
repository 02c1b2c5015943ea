/**
 * The checkpoint manager: the coordinator at the root. It finds what to resume from, opens a save, commits it when every
 * writer has its shard on disk, and retires old ones. The writers are the ranks; no tensor passes through here.
 */
import { dirname, resolve } from "node:path";
import { z } from "zod";
import {
  abandonCheckpoint,
  beginCheckpoint,
  commitCheckpoint,
  type GlobalTensor,
  type Json,
  newestUsable,
  retireOld,
  type ShardReport,
} from "../src/checkpoint/mod.ts";
import { actor, protocol } from "./runtime/mod.ts";

const plainObject = <T>() => z.custom<T>((value) => typeof value === "object" && value !== null, "expected an object");

export const checkpointManagerProtocol = protocol({
  requests: {
    /** The newest checkpoint whose every byte is as written; null when there is none. */
    newest: {
      ask: {
        /** Only those saved by the run of this folder; null for any. */
        ofRun: z.string().nullable(),
      },
      reply: z.object({ directory: z.string(), step: z.number() }).nullable(),
    },
    /** Opens a save: the folder that writers put their shards into. */
    begin: { ask: { step: z.number(), snapshot: z.boolean() }, reply: z.object({ directory: z.string() }) },
    /** Makes the shards of a save a checkpoint. */
    commit: {
      ask: {
        directory: z.string(),
        step: z.number(),
        shards: z.array(plainObject<ShardReport>()),
        tensors: z.array(plainObject<GlobalTensor>()),
        state: plainObject<Json>(),
      },
      reply: z.object({ directory: z.string() }),
    },
  },
  commands: {
    /** A writer failed: the save that was begun is given up. */
    abandon: { directory: z.string() },
  },
});

/** One that is whole while the next is written, and one more in case it turns out damaged. */
const keptSnapshots = 2;

export interface CheckpointManagerOptions {
  /** Local folder of this run's checkpoints. */
  readonly folder: string;
  /** Newest ones to keep; 0 keeps all. */
  readonly keepLast: number;
  /** Folder of snapshots, of which the newest two stay; absent where none are taken. */
  readonly snapshots?: string | undefined;
  /** The resolved run record, as text. */
  readonly config: string;
  readonly layout: Json;
}

/** A disk that fails is answered, not crashed on: the run decides whether to go on without the checkpoint. */
export const checkpointManager = ({ folder, keepLast, snapshots, config, layout }: CheckpointManagerOptions) => {
  const folders = snapshots === undefined ? [folder] : [folder, snapshots];
  return actor({
    protocol: checkpointManagerProtocol,
    initial: () => ({}),
    async handle(state, message, context) {
      try {
        switch (message.kind) {
          case "newest": {
            const { ofRun } = message;
            using found = await newestUsable(folders, {
              onSkipped: (sentence) => context.log(sentence),
              accept: ({ state }) => ofRun === null || (state as { run_folder?: unknown }).run_folder === ofRun,
            });
            message.reply(found ? { directory: found.directory, step: found.step } : null);
            break;
          }
          case "begin": {
            const where = message.snapshot && snapshots !== undefined ? snapshots : folder;
            message.reply({ directory: await beginCheckpoint(where, message.step) });
            break;
          }
          case "commit": {
            const { directory, step, shards, tensors, state } = message;
            message.reply({
              directory: await commitCheckpoint({ directory, step, shards, tensors, layout, state, config }),
            });
            const isSnapshot = snapshots !== undefined && resolve(dirname(directory)) === resolve(snapshots);
            const keep = isSnapshot ? keptSnapshots : keepLast;
            if (keep > 0) {
              const { failed } = await retireOld(dirname(directory), keep, { upTo: step });
              failed.forEach((sentence) => context.log(sentence));
            }
            break;
          }
          case "abandon":
            await abandonCheckpoint(message.directory);
        }
      } catch (error) {
        if (!("reply" in message)) throw error;
        message.reply.refuse((error as Error).message);
      }
      return state;
    },
  });
};
