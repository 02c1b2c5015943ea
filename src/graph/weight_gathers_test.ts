import { assertEquals } from "@std/assert";
import { beginnings, type Prefetch } from "./weight_gathers.ts";

// The table, two layers of three weights, and the head.
const gathers = [[1, undefined], [3, 0], [5, 0], [7, 0], [9, 1], [11, 1], [13, 1], [15, undefined]]
  .map(([piece, layer]) => ({ piece: piece!, layer, axis: "weight" }));
const begun = (weight?: Prefetch) => Object.fromEntries(beginnings(gathers, weight ? { weight } : {}));

Deno.test("beginnings() begins each gather where it is needed, unless some are to be ahead", () => {
  assertEquals(begun(), Object.fromEntries(gathers.map(({ piece }) => [piece, [piece]])));
});

Deno.test("beginnings() begins a module's gather with the one before, or a layer's together", () => {
  assertEquals(begun({ per: "module", after: 1 }), {
    1: [1, 3],
    3: [5],
    5: [7],
    7: [9],
    9: [11],
    11: [13],
    13: [15],
  });
  assertEquals(begun({ per: "layer", after: 2 }), { 1: [1, 3, 5, 7], 5: [9, 11, 13], 11: [15] });
  assertEquals(begun({ per: "layer", after: 9 }), { 1: [1, 3, 5, 7], 7: [9, 11, 13], 13: [15] });
});

Deno.test("beginnings() takes each axis by itself", () => {
  const mixed = [...gathers, { piece: 6, layer: 0, axis: "expert_weight" }, {
    piece: 12,
    layer: 1,
    axis: "expert_weight",
  }];
  const ahead = { expert_weight: { per: "layer", after: 1 } } as const;
  const all = Object.fromEntries(beginnings(mixed, ahead));
  assertEquals(all, { ...begun(), 6: [6, 12] });
});
