import { assert, assertEquals, assertMatch } from "@std/assert";
import { openCpuBackend } from "../backend/cpu/backend.ts";
import type { Backend } from "../backend/backend.ts";
import { onAllRanks, simulatedWorld } from "../comm/_testing.ts";
import { createMesh } from "../parallel/mesh.ts";
import { createWorld, solo } from "../parallel/world.ts";
import { Diagnosis, outliersOf } from "./diagnosis.ts";

/** A device on which everything takes `times` as long. */
function slowed(backend: Backend, times: () => number): Backend {
  return new Proxy(backend, {
    get(target, name) {
      const value = Reflect.get(target, name, target) as unknown;
      if (name === "submit") {
        return (list: Parameters<Backend["submit"]>[0]) => {
          for (let i = 0; i < times(); i++) target.submit(list);
        };
      }
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

Deno.test("outliersOf() names who is above the mean of the others, and nobody for a hair's breadth", () => {
  assertEquals(outliersOf([0.01, 0.011, 0.03, 0.01], 1.1, 1e-3), [2]);
  assertEquals(outliersOf([0.01, 0.0105], 1.1, 1e-3), []);
  assertEquals(outliersOf([1e-5, 3e-5], 1.1, 1e-3), [], "below a millisecond all is noise");
  assertEquals(outliersOf([0.5], 1.1), []);
});

for (const count of [2, 3, 4, 5]) {
  Deno.test(`Diagnosis.run() names the rank of ${count} whose device is slow, on every rank alike`, async () => {
    const sizes = {
      world: count,
      tp: 1,
      pp: 1,
      dp: count,
      wp: 1,
      wdp: count,
      zero1: 1,
      ep: 1,
      edp: count,
      etp: 1,
      ewp: 1,
    };
    const reports = await onAllRanks(simulatedWorld(count), async (communicator, rank) => {
      const mesh = createMesh({ sizes, rank });
      using backend = openCpuBackend();
      const device = slowed(backend, () => rank === 1 ? 400 : 1);
      const report = await new Diagnosis({ backend: device, world: createWorld(mesh, communicator), ratio: 2 }).run();
      assertEquals(backend.allocatedBytes, 0);
      return report;
    });
    for (const { outliers, ranks, product, messages } of reports) {
      assertEquals(ranks.length, count);
      assert(product.every((time) => time > 0) && messages.every((time) => time > 0), `${product} ${messages}`);
      assertEquals(outliers, reports[0]!.outliers);
      const products = outliers.filter((text) => text.includes("matrix product"));
      assertEquals(products.length, 1, outliers.join("\n"));
      assertMatch(
        products[0]!,
        new RegExp(`^Rank 1 stands out: a matrix product took it .* ms, and .* of ${count} ranks`),
      );
    }
  });
}

Deno.test("Diagnosis.run() tells a rank that falls far behind its own past", async () => {
  let times = 1;
  using backend = openCpuBackend();
  const diagnosis = new Diagnosis({ backend: slowed(backend, () => times), world: solo, ratio: 1.1 });
  for (let i = 0; i < 5; i++) await diagnosis.run();
  times = 400;
  assertMatch(
    (await diagnosis.run()).outliers.join(),
    /^Rank 0 has slowed down: a matrix product took it .* ms, and .* ms/,
  );
});
