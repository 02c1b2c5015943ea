/** Tokens per device and second, in the five averages of InternEvo's step record. */
import { roundTo } from "./round.ts";

const SMA_WINDOW = 50;

export interface TgsReport {
  readonly "tgs/last_tgs_1": number;
  readonly "tgs/tgs_all": number;
  readonly "tgs/tgs_avg": number;
  readonly "tgs/tgs_SMA": number;
  readonly "tgs/last_tgs_10": number;
  readonly "tgs/last_tgs_50": number;
}

/**
 * @example
 * ```ts
 * import { TgsStatistic } from "./tgs_statistic.ts";
 * const tgs = new TgsStatistic();
 * tgs.update({ tokensPerDevice: 1000, seconds: 2, secondsSinceStart: 4 });
 * console.assert(tgs.report()["tgs/last_tgs_1"] === 500);
 * ```
 */
export class TgsStatistic {
  #steps = 0;
  #tokens = 0;
  #sumOfTgs = 0;
  #lastTgs = 0;
  #secondsSinceStart = 0;
  readonly #recent: { tokens: number; seconds: number }[] = [];
  readonly #blocks = [10, 50].map((length) => ({ length, tokens: 0, seconds: 0, tgs: 0 }));

  /** `secondsSinceStart`: wall time since training began, evaluation and checkpoints included. */
  update(step: { tokensPerDevice: number; seconds: number; secondsSinceStart: number }): void {
    const tokens = roundTo(step.tokensPerDevice, 4);
    this.#steps++;
    this.#tokens += tokens;
    this.#lastTgs = roundTo(tokens / step.seconds, 2);
    this.#sumOfTgs += this.#lastTgs;
    this.#secondsSinceStart = step.secondsSinceStart;
    this.#recent.push({ tokens, seconds: step.seconds });
    if (this.#recent.length > SMA_WINDOW) this.#recent.shift();
    for (const block of this.#blocks) {
      block.tokens += tokens;
      block.seconds += step.seconds;
      if (this.#steps % block.length === 0) {
        block.tgs = roundTo(block.tokens / block.seconds, 2);
        block.tokens = block.seconds = 0;
      }
    }
  }

  report(): TgsReport {
    const sum = (of: (step: { tokens: number; seconds: number }) => number) =>
      this.#recent.reduce((total, step) => total + of(step), 0);
    return {
      "tgs/last_tgs_1": this.#lastTgs,
      "tgs/tgs_all": roundTo(this.#tokens / this.#secondsSinceStart, 2),
      "tgs/tgs_avg": roundTo(this.#sumOfTgs / this.#steps, 2),
      "tgs/tgs_SMA": roundTo(sum((step) => step.tokens) / sum((step) => step.seconds), 2),
      "tgs/last_tgs_10": this.#blocks[0].tgs,
      "tgs/last_tgs_50": this.#blocks[1].tgs,
    };
  }
}
