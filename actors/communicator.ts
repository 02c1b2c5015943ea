/**
 * The communicator: a worker of each rank that stays awake while the rank's own thread blocks on the GPU. It holds the
 * control connection to the root and tells it every second where the rank is, from the progress word in shared memory.
 * When the root is gone the rank must not live on.
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

interface State {
  connection: ControlConnection | undefined;
  progress: Progress | undefined;
}

export const communicator = () =>
  actor({
    protocol: communicatorProtocol,
    internal: { beat: {} },
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
