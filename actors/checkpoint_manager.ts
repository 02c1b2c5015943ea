/**
 * The checkpoint manager: the coordinator at the root. It finds what to resume from, opens a save, commits it when every
 * writer has its shard on disk, and retires old ones. The writers are the ranks; no tensor passes through here.
 *
 * All ranks of an attempt ask to begin the same save, and get the same folder; each brings its shard, and all hear of the
 * commit together. A save of an earlier attempt, whose ranks are gone, is forgotten.
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
import { actor, protocol, type Reply } from "./runtime/mod.ts";

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
    begin: {
      ask: {
        step: z.number(),
        snapshot: z.boolean(),
        /** Which start of the ranks this is: saves of earlier ones are over. @default {1} */
        attempt: z.number().optional(),
        /** Writers in all, each of which asks. @default {1} */
        writers: z.number().optional(),
      },
      reply: z.object({ directory: z.string() }),
    },
    /** Brings a writer's shards; answered when those of all writers are a checkpoint. */
    commit: {
      ask: {
        directory: z.string(),
        step: z.number(),
        shards: z.array(plainObject<ShardReport>()),
        tensors: z.array(plainObject<GlobalTensor>()),
        /** The same from all ranks. */
        state: plainObject<Json>(),
        /** Writers in all. @default {1} */
        writers: z.number().optional(),
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

const notWritten = "another rank could not write its part";

interface Commit {
  readonly shards: readonly ShardReport[];
  readonly tensors: readonly GlobalTensor[];
  readonly reply: Reply<{ directory: string }>;
}

/** A save under way. */
interface Save {
  readonly key: string;
  readonly directory: string;
  readonly commits: Commit[];
  /** Writers that have asked for it. */
  begun: number;
  abandoned: boolean;
}

/** The save is answered by now: what cannot be removed is told, and stays. */
async function retire(folder: string, keep: number, upTo: number, tell: (sentence: string) => void): Promise<void> {
  try {
    const { failed } = await retireOld(folder, keep, { upTo });
    failed.forEach(tell);
  } catch (error) {
    tell((error as Error).message);
  }
}

/** A disk that fails is answered, not crashed on: the run decides whether to go on without the checkpoint. */
export const checkpointManager = ({ folder, keepLast, snapshots, config, layout }: CheckpointManagerOptions) => {
  const folders = snapshots === undefined ? [folder] : [folder, snapshots];
  return actor({
    protocol: checkpointManagerProtocol,
    initial: (): { save: Save | undefined } => ({ save: undefined }),
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
            const { snapshot, step, attempt = 1, writers = 1 } = message, key = `${attempt} ${step} ${snapshot}`;
            // One that all have asked for is over when another begins, whatever became of it.
            if (state.save?.key !== key || state.save.begun >= writers) {
              const where = snapshot && snapshots !== undefined ? snapshots : folder;
              const directory = await beginCheckpoint(where, step);
              state.save = { key, directory, commits: [], begun: 0, abandoned: false };
            }
            state.save.begun++;
            if (state.save.abandoned) message.reply.refuse(notWritten);
            else message.reply({ directory: state.save.directory });
            break;
          }
          case "commit": {
            const { directory, step, state: content, writers = 1 } = message, { save } = state;
            if (save?.directory !== directory || save.abandoned) {
              message.reply.refuse(notWritten);
              break;
            }
            save.commits.push(message);
            if (save.commits.length < writers) break;
            state.save = undefined;
            const shards = save.commits.flatMap((commit) => commit.shards);
            const tensors = [
              ...new Map(
                save.commits.flatMap((commit) => commit.tensors).map((each) => [`${each.kind} ${each.name}`, each]),
              ).values(),
            ];
            let committed: string;
            try {
              committed = await commitCheckpoint({ directory, step, shards, tensors, layout, state: content, config });
            } catch (error) {
              for (const { reply } of save.commits) reply.refuse((error as Error).message);
              break;
            }
            for (const { reply } of save.commits) reply({ directory: committed });
            const isSnapshot = snapshots !== undefined && resolve(dirname(directory)) === resolve(snapshots);
            const keep = isSnapshot ? keptSnapshots : keepLast;
            if (keep > 0) await retire(dirname(directory), keep, step, (sentence) => context.log(sentence));
            break;
          }
          case "abandon":
            if (state.save?.directory === message.directory) {
              state.save.abandoned = true;
              for (const { reply } of state.save.commits) reply.refuse(notWritten);
            }
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
