/**
 * Where a kernel has several forms that do the same, its renderer asks which to take, and names the candidates: the best
 * one known from experience first. A tuner may have found another on the device at hand (`src/train/tune.ts`). Forms sum in
 * other orders, so a choice changes last bits.
 */

/** What was chosen on a device. */
export interface Choices {
  /**
   * @param question kernel, types and class of sizes: what shares a choice
   * @param candidates names of forms, the shipped choice first
   * @returns one of the candidates, or undefined to leave it at the first
   */
  of(question: string, candidates: readonly string[]): string | undefined;
}

/**
 * The form to render.
 *
 * @example
 * ```ts
 * import { ChoiceTable, choose } from "./choices.ts";
 * const choices = new ChoiceTable();
 * console.assert(choose({ choices }, "rows 768", ["64 lanes", "128 lanes"]) === "64 lanes");
 * choices.take({ "rows 768": "128 lanes" });
 * console.assert(choose({ choices }, "rows 768", ["64 lanes", "128 lanes"]) === "128 lanes");
 * ```
 */
export function choose<Name extends string>(
  { choices }: { readonly choices?: Choices },
  question: string,
  candidates: readonly Name[],
): Name {
  const name = candidates.length > 1 ? choices?.of(question, candidates) : undefined;
  return candidates.find((candidate) => candidate === name) ?? candidates[0]!;
}

/** Sizes within a factor of about the square root of two of a power of two are of one class, named by it. */
export const sizeClass = (size: number): number => 2 ** Math.round(Math.log2(size));

/** Choices by question. Names that are no candidates, of another version's maybe, choose nothing. */
export class ChoiceTable implements Choices {
  readonly #chosen = new Map<string, string>();
  readonly #used = new Map<string, string>();
  readonly #asked = new Set<string>();

  take(choices: Readonly<Record<string, string>>): void {
    for (const [question, name] of Object.entries(choices)) this.#chosen.set(question, name);
  }

  of(question: string, candidates: readonly string[]): string | undefined {
    this.#asked.add(question);
    const name = this.#chosen.get(question);
    if (name === undefined || !candidates.includes(name)) return undefined;
    if (name !== candidates[0]) this.#used.set(question, name);
    return name;
  }

  /** Questions that were asked so far. */
  get asked(): ReadonlySet<string> {
    return this.#asked;
  }

  /** Those among them whose answer is another than the shipped one, with it. */
  get used(): ReadonlyMap<string, string> {
    return this.#used;
  }
}
