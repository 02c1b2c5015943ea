/**
 * The backward pass through scratch (`rounds.ts`): weights and their gradients are computed once for all three gradients,
 * 5 products where passes that each compute them again make 7.
 */
import type { DeviceTraits, Operand, Pass } from "../kernel.ts";
import { type PairProducts, pairProductsPass } from "./pair_products.ts";
import { type PairScores, pairScoresPass } from "./pair_scores.ts";
import { roundPasses, type Rounds } from "./rounds.ts";
import type { AttentionShape } from "./shape.ts";

export interface PairGradients {
  readonly scores: PairScores;
  readonly products: PairProducts;
}

/** q, k, v, dO, rowData, start, end → dQ, dK, dV. */
export function pairGradientPasses(
  { scores, products }: PairGradients,
  rounds: Rounds,
  shape: AttentionShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
): Pass[] {
  return roundPasses(rounds, operands, traits, [
    pairScoresPass(scores, rounds, shape, operands, traits),
    pairProductsPass(products, rounds, shape, operands, traits),
  ]);
}
