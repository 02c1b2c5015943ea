/**
 * The communicator: a worker of each rank that stays awake while the rank's own thread blocks on the GPU. It holds the
 * control connection to the root and tells it every second where the rank is, from the progress word in shared memory.
 * When the root is gone the rank must not live on, however long its thread is busy.
 */
import { z } from "zod";
import { type ControlConnection, joinControl } from "../src/comm/control.ts";
import { Progress } from "./progress.ts";
import { actor, protocol } from "./runtime/mod.ts";

export const communicatorProtocol = protocol({
  requests: {
    /** Joins the root; answers when it is joined. */
    join: {
      ask: { hostname: z.string(), port: z.number(), token: z.string(), progress: z.instanceof(SharedArrayBuffer) },
      reply: z.null(),
    },
    /** Answers when the root is gone. */
    lost: { ask: {}, reply: z.null() },
  },
});

const beatMs = 1000;
/** What the rank's own thread may take to leave in good order when the root is gone. */
const graceMs = 4000;

interface State {
  connection: ControlConnection | undefined;
  progress: Progress | undefined;
}

export interface CommunicatorOptions {
  /** Ends the rank's process at once, whatever its own thread does. */
  readonly kill: () => void;
}

export const communicator = ({ kill }: CommunicatorOptions) =>
  actor({
    protocol: communicatorProtocol,
    internal: { beat: {}, orphaned: {}, overdue: {} },
    initial: (): State => ({ connection: undefined, progress: undefined }),
    async handle(state, message, context) {
      switch (message.kind) {
        case "join":
          try {
            state.connection = await joinControl(message);
          } catch (error) {
            message.reply.refuse((error as Error).message);
            break;
          }
          state.progress = new Progress(message.progress);
          message.reply(null);
          context.every(beatMs, { kind: "beat" });
          context.sendSelf({ kind: "beat" });
          state.connection.closed.then(() => context.sendSelf({ kind: "orphaned" }));
          break;
        case "orphaned":
          context.after(graceMs, { kind: "overdue" });
          break;
        case "overdue":
          kill();
          break;
        case "lost":
          if (!state.connection) message.reply.refuse("the root was never joined");
          else state.connection.closed.then(() => message.reply(null));
          break;
        case "beat":
          // A connection that breaks is noticed by `lost`, once for all.
          await state.connection!.send(state.progress!.read()).catch(() => {});
      }
      return state;
    },
    stopped: ({ connection }) => connection?.[Symbol.dispose](),
  });
