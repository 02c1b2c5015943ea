/**
 * The communicator: a worker of each rank that stays awake while the rank's own thread blocks on the GPU. It holds the
 * control connection to the root and tells it every second where the rank is, from the progress word in shared memory; and
 * the connections to the other ranks, over which it carries out the collectives that the rank asks for, on shared memory.
 * When the root is gone, or hangs, the rank must not live on, however long its thread is busy.
 */
import { z } from "zod";
import { type CollectiveCall, performer } from "../src/comm/collectives/calls.ts";
import { type Communicator, createCommunicator } from "../src/comm/collectives/communicator.ts";
import { type ControlConnection, joinControl } from "../src/comm/control.ts";
import { joinWorld } from "../src/comm/transport/rendezvous.ts";
import { FlightRecorder } from "../src/observe/flight_recorder.ts";
import { Progress } from "./progress.ts";
import { actor, protocol } from "./runtime/mod.ts";

/** Where the ranks of an attempt find each other. */
export const meetingSchema = z.object({
  hostname: z.string(),
  port: z.number(),
  /** Ranks in all. */
  world: z.number(),
  /** Of the run record and the program: the same on all ranks. */
  fingerprint: z.string(),
  encrypt: z.boolean(),
  timeoutMs: z.number(),
});
export type Meeting = z.output<typeof meetingSchema>;

const callSchema = z.custom<CollectiveCall>((value) => typeof value === "object" && value !== null);

export const communicatorProtocol = protocol({
  requests: {
    /** Joins the root; answers when it is joined. */
    join: {
      ask: {
        hostname: z.string(),
        port: z.number(),
        token: z.string(),
        rank: z.number(),
        attempt: z.number(),
        progress: z.instanceof(SharedArrayBuffer),
        /** Of the flight recorder. */
        recorder: z.instanceof(SharedArrayBuffer),
      },
      reply: z.null(),
    },
    /** Answers when the root is gone, with how. */
    lost: { ask: {}, reply: z.string() },
    /** Connects to the other ranks; answers when all have. */
    meet: {
      ask: {
        meeting: meetingSchema,
        /** This rank's own address, as the others reach it. */
        address: z.string(),
        /** A path for its Unix socket, for ranks of the same host. */
        socket: z.string().optional(),
        /** What chooses its GPU. */
        device: z.string().optional(),
      },
      /** Ranks that use the same GPU, this one among them, as far as that is known. */
      reply: z.object({ sharing: z.array(z.number()) }),
    },
    /** Carries out one collective; answers when it is done, refused when it failed. */
    collective: { ask: { call: callSchema }, reply: z.null() },
  },
  commands: {
    /** Ends all collectives everywhere. */
    abort: { reason: z.string() },
  },
});

const beatMs = 1000;
/** What the rank's own thread may take to leave in good order when the root is gone. */
const graceMs = 4000;

/** Exit code of a rank whose root is gone, or hangs. */
export const orphaned = 3;

interface State {
  connection: ControlConnection | undefined;
  /** The last of what the root is told, one after the other: what it does not take must not keep this actor from anything. */
  told: Promise<void>;
  /** Answers of the root by the last beat that saw one, and how many beats there were since. */
  answers: number;
  unanswered: number;
  /** Set when the root was taken for gone although the connection stood. */
  silence: string | undefined;
  identity: { readonly rank: number; readonly attempt: number; readonly token: string } | undefined;
  progress: Progress | undefined;
  communicator: Communicator | undefined;
  perform: ReturnType<typeof performer> | undefined;
  recorder: FlightRecorder | undefined;
  /** The first record that the root was not told. */
  untold: number;
}

export interface CommunicatorOptions {
  /** Ends the rank's process at once, whatever its own thread does. */
  readonly kill: () => void;
}

export const communicator = ({ kill }: CommunicatorOptions) =>
  actor({
    protocol: communicatorProtocol,
    internal: { beat: {}, orphaned: {}, overdue: {} },
    initial: (): State => ({
      connection: undefined,
      told: Promise.resolve(),
      answers: 0,
      unanswered: 0,
      silence: undefined,
      identity: undefined,
      progress: undefined,
      communicator: undefined,
      perform: undefined,
      recorder: undefined,
      untold: 0,
    }),
    async handle(state, message, context) {
      switch (message.kind) {
        case "join":
          try {
            state.connection = await joinControl(message);
          } catch (error) {
            message.reply.refuse((error as Error).message);
            break;
          }
          state.identity = { rank: message.rank, attempt: message.attempt, token: message.token };
          state.progress = new Progress(message.progress);
          state.recorder = new FlightRecorder(message.recorder);
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
          else {
            state.connection.closed.then(() =>
              message.reply(state.silence ?? "the root is gone, or has given this rank up")
            );
          }
          break;
        case "meet": {
          // Beats must go on meanwhile, so this is not waited for here.
          const { reply } = message, met = meet(state, message);
          met.then((sharing) => reply({ sharing }), (error) => reply.refuse((error as Error).message));
          break;
        }
        case "collective": {
          const { reply, call } = message;
          if (!state.communicator) reply.refuse("the other ranks were never met");
          else {
            carryOut(state, call).then(() => reply(null), async (error) => {
              await tellAll(state); // before the rank ends
              reply.refuse((error as Error).message);
            });
          }
          break;
        }
        case "abort":
          state.communicator?.transport.abort(message.reason);
          break;
        case "beat":
          listen(state);
          void tellAll(state);
      }
      return state;
    },
    async stopped({ connection, communicator }) {
      await communicator?.transport.close(500);
      connection?.[Symbol.dispose](); // last, or the rank would take its root for gone
    },
  });

/**
 * Looks whether the root answers. Its silence is counted in beats: in a time in which this process could do nothing there
 * are none, and what came meanwhile is read before the next.
 */
function listen(state: State): void {
  const { connection, answers } = state;
  if (connection!.answers !== answers) [state.answers, state.unanswered] = [connection!.answers, 0];
  else if (++state.unanswered * beatMs > connection!.silentMs) {
    state.silence ??= `the root has not answered for ${Math.round(connection!.silentMs / 1000)} s`;
    connection![Symbol.dispose]();
  }
}

/** Says something to the root. A connection that breaks is noticed by `lost`, once for all. */
async function tell({ connection, identity }: State, what: Readonly<Record<string, unknown>>): Promise<void> {
  const { rank, attempt } = identity!;
  await connection!.send({ rank, attempt, ...what }).catch(() => {});
}

/** Records of one beat: a line to the root is bounded. */
const mostRecords = 200;

/** A beat: where the rank is, and what it did since the last. */
function tellAll(state: State): Promise<void> {
  return state.told = state.told.then(async () => {
    const { records, next } = state.recorder!.since(state.untold, mostRecords);
    state.untold = next;
    await tell(state, { ...state.progress!.read(), records });
  });
}

/** One collective, with its beginning and its end on record. */
async function carryOut({ perform, recorder }: State, call: CollectiveCall): Promise<void> {
  const size = "data" in call ? `, ${call.data.length.toLocaleString("en")} ${call.data.type}` : "";
  const what = `${call.operator} of ${call.group}${"peer" in call ? ` with place ${call.peer}` : ""}${size}`;
  recorder!.note(`${what}: begun`);
  try {
    await perform!(call);
    recorder!.note(`${what}: done`);
  } catch (error) {
    recorder!.note((error as Error).message);
    recorder!.note(`${what}: failed`);
    throw error;
  }
}

interface Place {
  readonly meeting: Meeting;
  readonly address: string;
  readonly socket?: string | undefined;
  readonly device?: string | undefined;
}

/** @returns ranks that use the same GPU */
async function meet(
  state: State,
  { meeting, address, socket, device }: Place,
): Promise<number[]> {
  if (!state.identity) throw new Error("the root was never joined");
  const { rank, token } = state.identity, { hostname, port, world, fingerprint, encrypt, timeoutMs } = meeting;
  const transport = await joinWorld({
    rank,
    world,
    token,
    fingerprint,
    encrypt,
    timeoutMs,
    root: { hostname, port },
    hostname: address,
    socket,
    device,
  });
  state.communicator = createCommunicator(transport, { onLate: (report) => void tell(state, { late: report }) });
  state.perform = performer(state.communicator);
  return [...transport.sharing];
}
