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
  listener: (signal: Deno.Signal) => void,
  // Not SIGHUP: listening would undo what `nohup` is for.
  signals: readonly Deno.Signal[] = ["SIGINT", "SIGTERM"],
): Disposable {
  const once = onceInAWhile(listener, 250, () => performance.now());
  const heard = signals.map((signal) => [signal, () => once(signal)] as const);
  for (const [signal, handle] of heard) Deno.addSignalListener(signal, handle);
  return {
    [Symbol.dispose]() {
      for (const [signal, handle] of heard) Deno.removeSignalListener(signal, handle);
    },
  };
}

/** Calls the listener unless it was called less than `milliseconds` ago. */
export function onceInAWhile<T extends unknown[]>(
  listener: (...args: T) => void,
  milliseconds: number,
  now: () => number,
): (...args: T) => void {
  let last = -Infinity;
  return (...args) => {
    if (now() - last < milliseconds) return;
    last = now();
    listener(...args);
  };
}
