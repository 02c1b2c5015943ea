/** Getting in where many come at once. */
import { TurnedAwayError } from "./handshake.ts";

const firstPauseMs = 50, longestPauseMs = 2000;

/**
 * Tries until it is let in. Only who was turned away unheard tries again, after pauses that grow and differ between those
 * who came together; anything else is an answer.
 *
 * @param attempt gets what is left of the time, in milliseconds
 * @throws what the last attempt did, once `timeoutMs` are over
 */
export async function knock<T>(timeoutMs: number, attempt: (leftMs: number) => Promise<T>): Promise<T> {
  const deadline = performance.now() + timeoutMs;
  for (let pauseMs = firstPauseMs;; pauseMs = Math.min(2 * pauseMs, longestPauseMs)) {
    try {
      return await attempt(Math.max(1, deadline - performance.now()));
    } catch (error) {
      const wait = pauseMs * (0.5 + Math.random());
      if (!(error instanceof TurnedAwayError) || performance.now() + wait >= deadline) throw error;
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }
}
