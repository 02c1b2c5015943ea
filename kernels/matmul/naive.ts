/** v1: an invocation an element of C, read straight from the buffers. For comparison: no device prefers it. */
import type { Operand, Pass } from "../kernel.ts";
import { bindings, itemText } from "../norm/rows.ts";
import { epilogueNames, type MatmulShape, placesOf } from "./shape.ts";

export function naivePasses(shape: MatmulShape, operands: readonly Operand[]): Pass[] {
  const { m, n, k, transposeA, transposeB, batch, accumulate, bias, residual } = shape;
  const places = placesOf(operands, ["a", "b", ...epilogueNames(shape)]);
  const { open, workgroups } = itemText(batch * m * n);
  const code = `
${bindings(places.map((place) => operands[place]))}
${open}
  let column = i % ${n}u;
  let row = i / ${n}u % ${m}u;
  let z = i / ${m * n}u;
  var sum = 0f;
  for (var p = 0u; p < ${k}u; p++) {
    sum += a[z * ${m * k}u + ${transposeA ? `p * ${m}u + row` : `row * ${k}u + p`}]
      * b[z * ${k * n}u + ${transposeB ? `column * ${k}u + p` : `p * ${n}u + column`}];
  }
  c[i] ${accumulate ? "+=" : "="} sum${bias ? " + bias[column]" : ""}${residual ? " + residual[i]" : ""};
}
`;
  return [{ code, workgroups, operands: places }];
}
