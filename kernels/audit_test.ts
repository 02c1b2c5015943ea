import { assertEquals, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { audited, auditText } from "./audit.ts";
import { subgroupMatrix } from "./matrix_unit.ts";
import type { Kernel } from "./kernel.ts";
import { checkKernel } from "./testing.ts";

const extents = { buffers: [40, 40], images: [] };

/** A kernel over two operands of ten numbers, whose text has this body. */
function kernelOf(body: string, declarations = ""): Kernel {
  return {
    name: "test",
    operands: [{ name: "x", type: "f32", length: 10, access: "read" }, {
      name: "y",
      type: "f32",
      length: 10,
      access: "update",
    }],
    cost: { flops: 0, bytes: 0 },
    reference() {},
    passes: () => [{
      code: `@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
${declarations}
@compute @workgroup_size(16) fn main(@builtin(local_invocation_index) i: u32) { ${body} }`,
      workgroups: [1, 1, 1],
      operands: [0, 1],
    }],
  };
}
const numbers = { x: new Array(10).fill(1), y: new Array(10).fill(0) };
const run = (kernel: Kernel) => checkKernel(kernel, numbers, { audit: true, tolerance: Infinity });

const tile = "var<workgroup> tile: array<array<vec4f, 3>, 2>;";
for (
  const [what, body, fault, declarations = ""] of [
    ["a read past the end that a select throws away", "y[i % 10u] = select(0f, x[i], i < 10u);", "x[i] at 1"],
    ["a write past the end", "y[i] = x[i % 10u];", "y[i] at 1"],
    [
      "an index below zero",
      "y[i % 10u] = x[i32(i) - 1];",
      "x[i32(i) - 1] at 4294967295, of 10 elements; 6 invocations",
    ],
    ["a place in workgroup memory", "tile[i / 4u][i % 3u] = vec4f(x[i % 10u]); y[0] = 1f;", "tile[i / 4u] at", tile],
    ["one in a line of it", "tile[i % 2u][i % 4u] = vec4f(x[i % 10u]); y[0] = 1f;", "tile[i % 2u][i % 4u] at 3", tile],
    ["a component", "let v = vec2f(x[i % 10u]); y[i % 10u] = v[i % 3u];", "v[i % 3u] at 2, of 2 elements"],
    ["an array of the invocation", "var v = array<f32, 15>(); v[i] = x[i % 10u]; y[0] = 1f;", "v[i] at 15, of 15"],
    ["what a function reads", "y[i % 10u] = other(i);", "x[at] at 1", "fn other(at: u32) -> f32 { return x[at]; }"],
    ["an invocation that returns at once", "if (x[i] > 0f) { return; } y[0] = 1f;", "x[i] at 1"],
  ] as const
) {
  Deno.test(`checkKernel() with audit tells ${what}`, async () => {
    const error = await assertRejects(() => run(kernelOf(body, declarations)), Error, "outside its array");
    assertStringIncludes(error.message, fault);
  });
}

Deno.test("checkKernel() with audit takes indices that hold, at the last element and where none is evaluated", async () => {
  const { outputs } = await run(kernelOf("if (i < 10u && x[i] > 0f) { y[i] = x[9u - i]; }"));
  assertEquals([...outputs.y], new Array(10).fill(1));
});

Deno.test("auditText() refuses what it cannot follow, and a number that is past the end of a buffer", () => {
  const textOf = (body: string, declarations = "") => kernelOf(body, declarations).passes({} as never)[0]!.code;
  assertThrows(() => auditText(textOf("y[0] = mystery[i];"), extents), TypeError, "mystery");
  assertThrows(() => auditText(textOf("y[10] = 1f;"), extents), RangeError, "y[10]");
  assertEquals(auditText(textOf("y[9] = 1f;"), extents).sites, []);
  assertThrows(() => auditText("fn lonely() {}", extents), TypeError, "no entry point");
});

Deno.test("auditText() holds matrices that units load and store against their tile", () => {
  const textOf = (offset: string, stride: number) => {
    const place = { tile: "tiles", offset, stride, alongDepth: true };
    return `${subgroupMatrix.directives}
var<workgroup> tiles: array<vec4u, 160>;
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
@compute @workgroup_size(32) fn main(@builtin(local_invocation_index) lane: u32) {
  ${subgroupMatrix.sum("sum")}
  ${subgroupMatrix.left("tiles_a", place)}
  ${subgroupMatrix.right("tiles_b", place)}
  ${subgroupMatrix.multiplyAdd("sum", "tiles_a", "tiles_b")}
  ${subgroupMatrix.store("sum", "tiles", "lane / 32u", 9)}
  x[0] = tiles[lane].x;
}`;
  };
  const { code, sites } = auditText(textOf("lane * 0u", 5), { buffers: [4], images: [] });
  assertEquals(sites.map(({ extent }) => extent), [160, 160, 160, 160]);
  // 16 lines of 16 f16, two words each; of f32, four.
  assertStringIncludes(code, "auditMatrix(lane * 0u, 15u * (5u) + 2u, 160u, 1u)");
  assertStringIncludes(code, "auditMatrix(lane / 32u, 15u * (9u) + 4u, 160u, 3u)");
});

Deno.test("audited() keeps a kernel's operands and adds its own behind them", () => {
  const kernel = kernelOf("y[i % 10u] = x[i % 10u];"), watched = audited(kernel);
  assertEquals(watched.operands.map(({ name }) => name), ["x", "y", "audit"]);
  assertEquals(watched.passes({} as never)[0]!.operands, [0, 1, 2]);
  assertEquals(watched.fault([0, 0, 0, 0]), undefined);
});
