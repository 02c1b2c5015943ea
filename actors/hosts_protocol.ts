/**
 * What a root and the members of its run say to each other, over one connection a member:
 *
 * ```text
 * member → root   hello (name, ranks, program)      root → member   welcome (ranks in all)
 * member → root   ready (record)                     root → member   admitted | refused
 * then: start, message, kill, close, finish one way; started, message, ended, stop the other; ping and pong
 * ```
 */
import { z } from "zod";
import { closeQuietly } from "../src/comm/handshake.ts";
import { say } from "../src/comm/transport/gate.ts";
import type { FrameStream } from "../src/comm/transport/frame_stream.ts";
import { decodeJson, encodeJson } from "./runtime/json.ts";
import { reasonSchema } from "./runtime/mod.ts";

/** What a member is told of a rank to start. */
const startSchema = z.object({
  kind: z.literal("start"),
  id: z.number(),
  rank: z.number(),
  attempt: z.number(),
  localRank: z.number(),
  world: z.number(),
  control: z.object({ hostname: z.string(), port: z.number() }),
  write: z.array(z.string()),
  net: z.array(z.string()),
});
export type RankStart = Omit<z.output<typeof startSchema>, "kind" | "id">;

export const fromMember = z.discriminatedUnion("kind", [
  z.object({
    kind: z.literal("hello"),
    name: z.string().max(1000),
    /** By which ranks elsewhere reach those of this host. */
    address: z.string().max(1000),
    nproc: z.number().int().min(1).max(4096),
    version: z.string().max(1000),
    /** Where a launcher has numbered the ranks: the number of this host's first. */
    firstRank: z.number().int().min(0).optional(),
    /** Where a launcher has numbered the ranks of each machine: that of this host's first. */
    localRank: z.number().int().min(0).optional(),
  }),
  z.object({ kind: z.literal("ready"), record: z.string() }),
  z.object({ kind: z.literal("started"), id: z.number(), pid: z.number() }),
  z.object({ kind: z.literal("message"), id: z.number(), text: z.string() }),
  z.object({ kind: z.literal("ended"), id: z.number(), reason: reasonSchema }),
  /** Someone asked this host to end, as schedulers do all of them: the run is to save and stop. */
  z.object({ kind: z.literal("stop") }),
  z.object({ kind: z.literal("pong") }),
]);
export const fromRoot = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("welcome"), world: z.number() }),
  z.object({ kind: z.literal("refused"), reason: z.string() }),
  z.object({ kind: z.literal("admitted") }),
  startSchema,
  z.object({ kind: z.literal("message"), id: z.number(), text: z.string() }),
  z.object({ kind: z.literal("kill"), id: z.number() }),
  z.object({ kind: z.literal("close"), id: z.number() }),
  z.object({ kind: z.literal("finish"), code: z.number(), text: z.string() }),
  z.object({ kind: z.literal("ping") }),
]);

/** So long without a word, and the other side is gone. */
export const silentMs = 6000;

export const encode = (message: unknown) => new TextDecoder().decode(encodeJson(message));
export const decode = (text: string) => decodeJson(new TextEncoder().encode(text));

/** One side's writing end: frames go out one after the other. */
export function speaker(stream: FrameStream) {
  let last: Promise<void> = Promise.resolve();
  return (message: unknown) => {
    last = last.then(() => say(stream, message)).catch(() => closeQuietly(stream)); // its reader notices
    return last;
  };
}
