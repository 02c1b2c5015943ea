/** Waiting for others, in the time that this process itself has had. */

const turnMs = 100;

/**
 * Calls back after a time that is counted in short turns. A process that was stopped for a while, or starved on a busy
 * machine, has not waited meanwhile: what came for it lies unread, and it must not take the others for silent.
 *
 * @returns what ends the wait
 */
export function afterPatience(ms: number, call: () => void): Disposable {
  let left = ms, timer: ReturnType<typeof setTimeout> | undefined;
  const turn = () => {
    const next = Math.min(turnMs, left);
    left -= next;
    timer = setTimeout(left > 0 ? turn : call, next);
  };
  turn();
  return { [Symbol.dispose]: () => clearTimeout(timer) };
}
