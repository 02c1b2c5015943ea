/**
 * The backward pass through scratch (`rounds.ts`): weights and their gradients are computed once for all three gradients,
 * 5 products where passes that each compute them again make 7.
 */
import type { DeviceTraits, Operand, Pass } from "../kernel.ts";
import { type PairProduct, pairProductPass } from "./pair_products.ts";
import { type PairScores, pairScoresPass } from "./pair_scores.ts";
import { roundPasses, type Rounds } from "./rounds.ts";
import type { AttentionShape } from "./shape.ts";

export interface PairGradients {
  readonly scores: PairScores;
  readonly product: PairProduct;
}

/** q, k, v, dO, rowData, start, end → dQ, dK, dV. */
export function pairGradientPasses(
  { scores, product }: PairGradients,
  rounds: Rounds,
  shape: AttentionShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
): Pass[] {
  const sum = (over: "keys" | "queries", names: readonly [string, string, string]) =>
    pairProductPass(product, rounds, shape, operands, traits, over, names);
  // The sums do not wait for each other.
  return roundPasses(rounds, operands, traits, [
    pairScoresPass(scores, rounds, shape, operands, traits),
    sum("keys", ["weightGradients", "k", "dQ"]),
    sum("queries", ["weights", "dO", "dV"]),
    sum("queries", ["weightGradients", "q", "dK"]),
  ]);
}
