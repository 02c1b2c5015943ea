import { assert, assertEquals, assertMatch } from "@std/assert";
import { choose } from "../../kernels/choices.ts";
import type { DeviceTraits, Kernel } from "../../kernels/kernel.ts";
import { matmul } from "../../kernels/matmul/mod.ts";
import { openWebGpuBackend } from "../backend/webgpu/backend.ts";
import { defaultProvider } from "../backend/webgpu/provider.ts";
import { tinyRecord } from "./_testing.ts";
import { kernelsOf, KernelTrial } from "./kernel_trial.ts";
import { questionsOf, tune } from "./tune.ts";

const length = 1000;

/** Doubles numbers, each form with so many turns for nothing, or wrongly. */
function doubling(forms: Readonly<Record<string, string>>): Kernel {
  return {
    name: "doubling",
    operands: [
      { name: "x", type: "f32", length, access: "read" },
      { name: "y", type: "f32", length, access: "write" },
    ],
    cost: { flops: length, bytes: 8 * length },
    reference: ([x, y]) => x!.forEach((value, i) => y![i] = 2 * value),
    passes(traits: DeviceTraits) {
      const body = forms[choose(traits, "doubling", Object.keys(forms))]!;
      const code = `
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
fn turns(v: f32, count: u32) -> f32 {
  var sum = v;
  for (var i = 0u; i < count; i++) { sum = sin(sum) + v; }
  return select(v, sum, sum > 1e30);
}
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) {
  let i = id.x;
  if (i >= ${length}u) { return; }
  ${body}
}`;
      return [{ code, workgroups: [Math.ceil(length / 64), 1, 1], operands: [0, 1] }];
    },
  };
}

const slow = "y[i] = 2.0 * turns(x[i], 20000u);", quick = "y[i] = 2.0 * x[i];";
const found = (kernel: Kernel) => [{ kernel, run: "test", calls: 1 }];

Deno.test("tune() takes the fastest form that is right, and says why others cannot be taken", async () => {
  using backend = await openWebGpuBackend(defaultProvider());
  const forms = {
    "shipped, slow": slow,
    "wrong": "y[i] = 2.01 * x[i];",
    "leaves out the end": "if (i < 900u) { y[i] = 2.0 * x[i]; }",
    "no WGSL": "y[i] = 2.0 * x[i]",
    "quick": quick,
  };
  const { found: answers, left } = await tune(found(doubling(forms)), { backend, seconds: 60 });
  assertEquals(left, 0);
  const { choice, tried } = answers.get("doubling")!;
  assertEquals(choice, "quick");
  assertEquals(Object.keys(tried), Object.keys(forms));
  const refusal = (name: string) => (tried[name] as { refused: string }).refused;
  assertMatch(refusal("wrong"), /^differs from the reference by 0.005/);
  assertMatch(refusal("leaves out the end"), /^differs from the reference/);
  assertMatch(refusal("no WGSL"), /^Cannot compile kernel doubling/);
  assert("seconds" in tried["shipped, slow"]!);
  await backend.finish();
  assertEquals(backend.allocatedBytes, 0);
});

Deno.test("tune() keeps what is shipped where nothing is faster, and refuses a shipped form that is wrong", async () => {
  using backend = await openWebGpuBackend(defaultProvider());
  const problems: (string | undefined)[] = [];
  const choiceOf = async (forms: Record<string, string>) => {
    const { found: answers } = await tune(found(doubling(forms)), {
      backend,
      seconds: 60,
      onFound: ({ problem }) => problems.push(problem),
    });
    return answers.get("doubling")?.choice;
  };
  assertEquals(await choiceOf({ shipped: quick, other: slow }), "shipped");
  assertEquals(await choiceOf({ shipped: "y[i] = x[i];", other: quick }), undefined);
  assertMatch(problems[1]!, /the shipped form shipped differs from the reference/);
  await backend.finish();
});

Deno.test("tune() leaves alone what is known, and stops when its time is over", async () => {
  using backend = await openWebGpuBackend(defaultProvider());
  const kernels = kernelsOf(tinyRecord(), backend.traits);
  const questions = questionsOf(kernels, backend).map(({ question }) => question);
  // Such small products and rows have one form alone on a GPU.
  const ofSoftware = backend.traits.software ? ["matmul.nt", "matmul.tn", "rows"] : [];
  for (const kind of ["attention.forward", "attention.backward", ...ofSoftware]) {
    assert(questions.some((question) => question.startsWith(kind)), kind);
  }
  const options = { backend, known: (question: string) => question !== questions[0] };
  assertEquals((await tune(kernels, { ...options, seconds: 0 })).left, 1);
  const { found, left } = await tune(kernels, { ...options, seconds: 1e-9 + Number.MIN_VALUE });
  assertEquals([found.size + left], [1]);
  await backend.finish();
});

Deno.test("a backend compiles the forms that were chosen, and tells which", async () => {
  using backend = await openWebGpuBackend(defaultProvider());
  const kernel = matmul({ m: 33, n: 70, k: 40 }), other = matmul({ m: 33, n: 70, k: 40 });
  using trial = new KernelTrial(kernel, backend);
  const shipped = await trial.result(await trial.prepare(kernel));
  assertEquals(backend.choices!.used.size, 0);
  const [question] = [...backend.choices!.asked];
  const { candidates } = questionsOf([{ kernel, run: "", calls: 1 }], backend)[0]!;
  backend.choices!.take({ [question!]: candidates[1]! });
  const chosen = await trial.result(await trial.prepare(other));
  assertEquals([...backend.choices!.used], [[question, candidates[1]]]);
  // The same product, whose sums may differ in their last bits.
  chosen[0]!.forEach((value, i) => assert(Math.abs(value - shipped[0]![i]!) < 1e-4));
  await backend.finish();
});
