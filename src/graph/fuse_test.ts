import { assertEquals } from "@std/assert";
import { make, network } from "./_testing.ts";
import { openBackend } from "../backend/open.ts";
import type { SegmentName } from "./plan.ts";

Deno.test("fuseSums() leaves no pass that only adds gradients of one stream", async () => {
  using backend = await openBackend("null");
  using made = await make((graph) => network(graph, { head: "own" }), backend);
  const counts = new Map<string, number>();
  for (const instruction of made.plan.segments["backward 0" satisfies SegmentName].instructions) {
    const name = instruction.kind === "dispatch" ? instruction.label : instruction.kind;
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  // Query, key and value share a stream, gate and up another, and both norms of a layer have the residual's beside theirs.
  // What is left are the weights and biases of layer norms, which one kernel makes of both.
  const layerNorms = counts.get("norm.layer.weightGradient")!;
  assertEquals(counts.get("elementwise.addInPlace"), 2 * layerNorms);
  assertEquals(counts.get("copy"), undefined);
});
