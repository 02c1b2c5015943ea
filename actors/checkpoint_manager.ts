/**
 * The checkpoint manager: the coordinator at the root. It finds what to resume from, opens a save, commits it when every
 * writer has its shard on disk, and retires old ones. The writers are the ranks; no tensor passes through here.
 */
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
    newest: { ask: {}, reply: z.object({ directory: z.string(), step: z.number() }).nullable() },
    /** Opens a save: the folder that writers put their shards into. */
    begin: { ask: { step: z.number() }, reply: z.object({ directory: z.string() }) },
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

export interface CheckpointManagerOptions {
  /** Local folder of this run's checkpoints. */
  readonly folder: string;
  /** Newest ones to keep; 0 keeps all. */
  readonly keepLast: number;
  /** The resolved run record, as text. */
  readonly config: string;
  readonly layout: Json;
}

/** A disk that fails is answered, not crashed on: the run decides whether to go on without the checkpoint. */
export const checkpointManager = ({ folder, keepLast, config, layout }: CheckpointManagerOptions) =>
  actor({
    protocol: checkpointManagerProtocol,
    initial: () => ({}),
    async handle(state, message, context) {
      try {
        switch (message.kind) {
          case "newest": {
            using found = await newestUsable(folder, { onSkipped: (sentence) => context.log(sentence) });
            message.reply(found ? { directory: found.directory, step: found.step } : null);
            break;
          }
          case "begin":
            message.reply({ directory: await beginCheckpoint(folder, message.step) });
            break;
          case "commit": {
            const { directory, step, shards, tensors, state } = message;
            message.reply({
              directory: await commitCheckpoint({ directory, step, shards, tensors, layout, state, config }),
            });
            if (keepLast > 0) {
              const { failed } = await retireOld(folder, keepLast, { upTo: step });
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
