/** Why an actor ended, and why an ask failed: plain data, the same on both sides of a connection. */
import { z } from "zod";

export const reasonSchema = z.discriminatedUnion("kind", [
  /** It was done, or was told to stop. The only normal end. */
  z.object({ kind: z.literal("stopped") }),
  /** Its handler (or the program that hosts it) threw. */
  z.object({ kind: z.literal("crashed"), error: z.string(), stack: z.string().optional() }),
  /** The connection to it ended; whether it still lives is not known. */
  z.object({ kind: z.literal("lost"), detail: z.string() }),
  /** Its process was killed by a signal. */
  z.object({ kind: z.literal("killed"), signal: z.string(), number: z.number() }),
  /** Its process or worker ended without a word. */
  z.object({ kind: z.literal("exited"), code: z.number() }),
  /** There never was such an actor, or it ended before it was watched. */
  z.object({ kind: z.literal("absent") }),
]);
export type Reason = z.output<typeof reasonSchema>;

export const stopped: Reason = { kind: "stopped" };

export function crashed(error: unknown): Reason {
  if (!(error instanceof Error)) return { kind: "crashed", error: String(error) };
  return { kind: "crashed", error: `${error.name}: ${error.message}`, ...(error.stack ? { stack: error.stack } : {}) };
}

export function describeReason(reason: Reason): string {
  switch (reason.kind) {
    case "stopped":
      return "stopped";
    case "crashed":
      return `crashed: ${reason.error}`;
    case "lost":
      return `connection lost: ${reason.detail}`;
    case "killed":
      return `killed by ${reason.signal} (${reason.number})`;
    case "exited":
      return `exited with code ${reason.code}`;
    case "absent":
      return "no such actor";
  }
}

/** Thrown by an actor to end with a reason that is not a crash of its own (a proxy whose process was killed). */
export class Ended extends Error {
  override name = "Ended";
  constructor(readonly reason: Reason) {
    super(describeReason(reason));
  }
}

export type AskFailure = "timeout" | "stopped" | "invalid" | "refused" | "lost";

/**
 * An ask that got no answer; `failure` says which way, the message names the actor and the request. `reason` is the
 * sentence of a refusal as the actor gave it, for people who know neither. Where the actor's end was the failure, `cause` is
 * its {@linkcode Ended}.
 */
export class AskError extends Error {
  override name = "AskError";
  constructor(readonly failure: AskFailure, message: string, readonly reason?: string, options?: ErrorOptions) {
    super(message, options);
  }
}

/**
 * What to tell people of an error: of a refusal, the sentence that the actor gave.
 *
 * @param whom what people call the actor that was asked, for when its end was the failure
 */
export function plainReason(error: unknown, whom?: string): string {
  if (error instanceof AskError) {
    return whom !== undefined && error.cause instanceof Ended
      ? `${whom} ${error.cause.message}`
      : error.reason ?? error.message;
  }
  return error instanceof Error ? error.message : String(error);
}
