/** Accuracy, perplexity and loss over tokens, in all and by data-set type: InternEvo's `AccPerplex`. */
import { roundTo } from "./round.ts";

/** The label of tokens that carry no loss. */
const IGNORED_LABEL = -100;

/** One micro-batch, one entry a token; entries whose label is `IGNORED_LABEL` are not looked at. */
export interface TokenResults {
  /** -log p(label), without label smoothing. */
  readonly nll: Float32Array;
  /** 1 where the arg-max of the logits is the label. */
  readonly correct: Uint32Array;
  readonly labels: Int32Array;
  /** Index into the type names; needed where there are any. */
  readonly typeIds?: Uint32Array;
}

/** Indices into the accumulator vector; from `TYPES` on, three numbers a type in the same order as these. */
const RIGHT = 0, TOTAL = 1, NLL = 2, TYPES = 3;

/** Keeps the accuracy of a type without tokens at 0; the value is InternEvo's. */
const TYPE_EPSILON = 1e-5;

/**
 * Sums over micro-batches; ranks add their `state()` vectors element by element before `report()`.
 *
 * @example
 * ```ts
 * import { AccPerplex } from "./metrics.ts";
 * const metric = new AccPerplex();
 * metric.add({
 *   nll: new Float32Array([Math.LN2, Math.LN2, 9]),
 *   correct: new Uint32Array([1, 0, 0]),
 *   labels: new Int32Array([5, 6, -100]),
 * });
 * const { acc, perplexity } = metric.report();
 * console.assert(acc === 0.5 && perplexity === 2);
 * ```
 */
export class AccPerplex {
  readonly typeNames: readonly string[];
  #sums: number[];

  constructor(options: { readonly typeNames?: readonly string[] } = {}) {
    this.typeNames = options.typeNames ?? [];
    this.#sums = this.#zeros();
  }

  #zeros(): number[] {
    return new Array(TYPES + 3 * this.typeNames.length).fill(0);
  }

  /** @throws {TypeError} where arrays differ in length or types are missing; {RangeError} on an unknown type. */
  add(tokens: TokenResults): void {
    const { nll, correct, labels, typeIds } = tokens;
    const lengths = [nll.length, correct.length, labels.length, ...(typeIds ? [typeIds.length] : [])];
    if (new Set(lengths).size !== 1) {
      throw new TypeError(`Cannot add to the metric: arrays must be equally long, found lengths ${lengths.join(", ")}`);
    }
    const types = this.typeNames.length;
    if (types > 0 && typeIds === undefined) {
      throw new TypeError(`Cannot add to the metric: it counts ${types} types, so typeIds must be given`);
    }
    const sums = this.#zeros();
    for (let i = 0; i < labels.length; i++) {
      if (labels[i] === IGNORED_LABEL) continue;
      const right = correct[i] === 0 ? 0 : 1;
      sums[RIGHT] += right;
      sums[TOTAL]++;
      sums[NLL] += nll[i];
      if (types === 0) continue;
      const type = typeIds![i];
      if (type >= types) {
        throw new RangeError(`Cannot add to the metric: type ids must be below ${types}, found ${type} at token ${i}`);
      }
      const at = TYPES + 3 * type;
      sums[at + RIGHT] += right;
      sums[at + TOTAL]++;
      sums[at + NLL] += nll[i];
    }
    this.merge(sums);
  }

  /** The sums so far: `[right, total, Σ nll]`, then the same three for each type. Equally long on all ranks. */
  state(): number[] {
    return [...this.#sums];
  }

  /** Adds the sums of another rank. */
  merge(state: ArrayLike<number>): void {
    if (state.length !== this.#sums.length) {
      throw new TypeError(
        `Cannot merge metrics: ${this.#sums.length} numbers are needed for ${this.typeNames.length} types, found ${state.length}`,
      );
    }
    this.#sums = this.#sums.map((sum, i) => sum + state[i]);
  }

  reset(): void {
    this.#sums = this.#zeros();
  }

  /** Tokens with loss counted so far. */
  get tokens(): number {
    return this.#sums[TOTAL];
  }

  /**
   * `acc`, `perplexity`, `acc/{type}`…, `tokens/{type}`…, `loss_from_metric`, `loss/{type}`…, in this order, rounded to
   * four decimals. What has no tokens is `NaN` (`acc/{type}`: 0). Does not reset.
   */
  report(): Record<string, number> {
    const sums = this.#sums;
    const loss = sums[NLL] / sums[TOTAL];
    const report: Record<string, number> = {
      acc: roundTo(sums[RIGHT] / sums[TOTAL], 4),
      perplexity: roundTo(Math.exp(loss), 4),
    };
    const types = this.typeNames.map((name, i) => [name, TYPES + 3 * i] as const);
    for (const [name, at] of types) {
      report[`acc/${name}`] = roundTo(sums[at + RIGHT] / (sums[at + TOTAL] + TYPE_EPSILON), 4);
    }
    for (const [name, at] of types) report[`tokens/${name}`] = sums[at + TOTAL];
    report.loss_from_metric = roundTo(loss, 4);
    for (const [name, at] of types) report[`loss/${name}`] = roundTo(sums[at + NLL] / sums[at + TOTAL], 4);
    return report;
  }
}
