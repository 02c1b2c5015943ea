/** Waiting for others, in the time that this process itself has had. */

/** Into how many turns a wait is divided: enough that one of them lost is a small part of it. */
const turns = 8;
/** So many turns may pass in all before they are enough, however late they come. */
const mostTurns = 4 * turns;

/**
 * Calls back after a time that is counted in turns. A turn that comes late by more than its own length does not count: a
 * process that was stopped for a while, or starves on a busy machine, has not waited meanwhile. What came for it lies unread,
 * and those it waits for starve likewise; it must not take them for silent.
 *
 * @returns what ends the wait
 */
export function afterPatience(ms: number, call: () => void): Disposable {
  const each = ms / turns;
  let left = turns, most = mostTurns, due = 0, timer: ReturnType<typeof setTimeout> | undefined;
  const wait = () => {
    due = performance.now() + each;
    timer = setTimeout(turn, each);
  };
  const turn = () => {
    if (performance.now() - due <= each) left--;
    if (left > 0 && --most > 0) wait();
    else call();
  };
  wait();
  return { [Symbol.dispose]: () => clearTimeout(timer) };
}
