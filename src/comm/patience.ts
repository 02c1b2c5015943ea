/** Waiting for others, in the time that this process itself has had. */

/** Into how many turns a wait is divided: enough that one of them lost is a small part of it. */
const turns = 8;

/**
 * Calls back after a time that is counted in turns. A process that was stopped for a while, or starved on a busy
 * machine, has not waited meanwhile: what came for it lies unread, and it must not take the others for silent.
 *
 * @returns what ends the wait
 */
export function afterPatience(ms: number, call: () => void): Disposable {
  let left = turns, timer: ReturnType<typeof setTimeout> | undefined;
  const turn = () => timer = setTimeout(--left > 0 ? turn : call, ms / turns);
  turn();
  return { [Symbol.dispose]: () => clearTimeout(timer) };
}
