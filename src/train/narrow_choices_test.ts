import { assertEquals } from "@std/assert";
import { choose } from "../../kernels/moe_router/mod.ts";
import { openBackend } from "../backend/open.ts";
import { narrowest, RouterWitness } from "./narrow_choices.ts";

const tokens = 3, experts = 4, choices = 2;
// Between the second and the third: 2, 0.5, 1.
const scores = Float32Array.of(5, 0, 3, 1, 1.5, -1, 4, 1, 0, 3, 2, 4);
const sizes = { experts, choices, microBatches: 2 };

Deno.test("narrowest() finds the token whose last choice was nearest to going elsewhere", () => {
  const { row, rows, chosen, other, apart, score, size } = narrowest(scores, sizes)!;
  assertEquals([row, rows, chosen, other, apart, score, size], [1, 3, 0, 3, 0.5, 1.5, 4]);
  const equal = narrowest(Float32Array.of(2, 7, 2, 2), sizes)!;
  assertEquals([equal.chosen, equal.other, equal.apart], [0, 2, 0], "of equal scores the first is chosen");
  assertEquals(narrowest(scores, { experts, choices: experts }), undefined);
  assertEquals(narrowest(new Float32Array(4).fill(NaN), sizes), undefined);
});

for (const name of ["cpu", "webgpu"] as const) {
  Deno.test(`RouterWitness tells what routers saw and exchanges two experts of one token on ${name}`, async () => {
    using inner = await openBackend(name);
    const before = inner.allocatedBytes;
    using witness = new RouterWitness(inner, { chooses: true });
    const { backend } = witness, kernel = choose({ tokens, experts, choices });
    assertEquals([backend.name, backend.traits, backend.allocatedBytes], [inner.name, inner.traits, before]);
    const logits = backend.allocate(4 * scores.length, "logits"),
      choice = backend.allocate(4 * tokens * choices, "choice");
    const whole = (buffer: typeof logits) => ({ buffer, offset: 0, bytes: buffer.bytes });
    const list = await backend.prepare([{ kind: "dispatch", kernel, ranges: [whole(logits), whole(choice)] }]);
    const layers = new Map([[kernel, 7]]);
    const chosen = async () => {
      const ticket = backend.read([whole(choice)]);
      await ticket.ready();
      return [...new Uint32Array(ticket.take()[0]!.buffer)];
    };

    // Two micro-batches, of which the second has the narrower choice, in its last token.
    const second = Float32Array.from(scores, (score, index) => index === 10 ? 2.75 : score);
    for (const each of [scores, second]) {
      backend.upload(whole(logits), each);
      backend.submit(list);
    }
    assertEquals(await chosen(), [0, 2, 2, 0, 3, 1]);
    const found = (await witness.take(layers, sizes))!;
    assertEquals(found, {
      microBatch: 1,
      layer: 7,
      row: 2,
      rows: 3,
      chosen: 1,
      other: 2,
      apart: 0.25,
      score: 3,
      size: 4,
    });

    witness.chooseOther(kernel, found);
    for (const [microBatch, each] of [scores, second].entries()) {
      backend.upload(whole(logits), each);
      backend.submit(list);
      assertEquals(await chosen(), [0, 2, 2, 0, 3, microBatch === 0 ? 1 : 2]);
    }
    assertEquals((await witness.take(layers, { ...sizes, microBatches: 1 }))!.apart, 0.5, "the first pass alone");

    // Equal scores: the later expert is chosen only if its score is higher.
    const equal = Float32Array.from(scores, (score, index) => index === 7 ? 1.5 : score);
    backend.upload(whole(logits), equal);
    backend.submit(list);
    const tie = (await witness.take(layers, sizes))!;
    assertEquals([tie.chosen, tie.other, tie.apart], [0, 3, 0]);
    witness.chooseOther(kernel, tie);
    backend.upload(whole(logits), equal);
    backend.submit(list);
    assertEquals(await chosen(), [0, 2, 2, 3, 3, 1]);
    assertEquals(await witness.take(new Map(), sizes), undefined, "a router that is not asked about");

    witness[Symbol.dispose]();
    for (const buffer of [logits, choice]) backend.release(buffer);
    assertEquals(inner.allocatedBytes, before);
    await inner.finish();
  });
}
