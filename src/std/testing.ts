/**
 * `@std/testing` on what the runtime itself offers: `Deno.test` runs the cases, `node:test` mocks functions and
 * holds the clock. To be replaced by the package when the registry that carries it can be reached.
 *
 * @example
 * ```ts
 * import { FakeTime } from "@std/testing";
 * using time = new FakeTime();
 * let fired = false;
 * setTimeout(() => fired = true, 1000);
 * time.tick(1000);
 * console.assert(fired);
 * ```
 */
import { mock } from "node:test";

export { mock } from "node:test";

/** Holds `setTimeout`, `setInterval` and `Date` still until told to move. Only one may be alive at a time. */
export class FakeTime implements Disposable {
  constructor(startMilliseconds = 0) {
    mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"], now: startMilliseconds });
  }
  /** Moves the clock forward, running every timer that falls due, in order. */
  tick(milliseconds: number): void {
    mock.timers.tick(milliseconds);
  }
  [Symbol.dispose](): void {
    mock.timers.reset();
  }
}
