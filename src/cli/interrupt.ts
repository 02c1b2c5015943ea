/** Ctrl-C and its like, each told once. */

/**
 * Calls the listener once for each time that the user or a scheduler asks the program to end. Under `deno task` a
 * Ctrl-C arrives twice: the terminal sends it to every process, and the task's process passes its own on. So what comes
 * within a quarter of a second is one.
 *
 * @example
 * ```ts
 * import { onInterrupt } from "./interrupt.ts";
 * using _listening = onInterrupt(() => console.log("stopping"));
 * ```
 */
export function onInterrupt(
  listener: () => void,
  signals: readonly Deno.Signal[] = ["SIGINT", "SIGTERM", "SIGHUP"],
): Disposable {
  const heard = onceInAWhile(listener, 250, () => performance.now());
  for (const signal of signals) Deno.addSignalListener(signal, heard);
  return {
    [Symbol.dispose]() {
      for (const signal of signals) Deno.removeSignalListener(signal, heard);
    },
  };
}

/** Calls the listener unless it was called less than `milliseconds` ago. */
export function onceInAWhile(listener: () => void, milliseconds: number, now: () => number): () => void {
  let last = -Infinity;
  return () => {
    if (now() - last < milliseconds) return;
    last = now();
    listener();
  };
}
