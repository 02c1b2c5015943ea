/** v1: an invocation an element of C, read straight from the buffers. For comparison: no device prefers it. */
import type { DeviceTraits, Operand, Pass } from "../kernel.ts";
import { itemText } from "../norm/rows.ts";
import { storage } from "../storage.ts";
import { epilogueNames, type MatmulShape, placesOf } from "./shape.ts";

export function naivePasses(shape: MatmulShape, operands: readonly Operand[], traits: DeviceTraits): Pass[] {
  const { m, n, k, transposeA, transposeB, batch, accumulate, bias, residual } = shape;
  const places = placesOf(operands, ["a", "b", ...epilogueNames(shape)]);
  const { open, workgroups } = itemText(batch * m * n);
  const { directives, bindings, load, store, add } = storage(traits, places.map((place) => operands[place]));
  const result = `sum${bias ? ` + ${load("bias", "column")}` : ""}${residual ? ` + ${load("residual", "i")}` : ""}`;
  const code = `${directives}
${bindings}
${open}
  let column = i % ${n}u;
  let row = i / ${n}u % ${m}u;
  let z = i / ${m * n}u;
  var sum = 0f;
  for (var p = 0u; p < ${k}u; p++) {
    let i = z * ${m * k}u + ${transposeA ? `p * ${m}u + row` : `row * ${k}u + p`};
    let j = z * ${k * n}u + ${transposeB ? `column * ${k}u + p` : `p * ${n}u + column`};
    sum += ${load("a", "i")} * ${load("b", "j")};
  }
  ${(accumulate ? add : store)("c", "i", result)}
}
`;
  return [{ code, workgroups, operands: places }];
}
