/**
 * Our side of the GPU benchmark; `torch_reference.py` is the other. Run both on one machine, one after the other:
 *
 *     deno run --allow-all tests/bench/gpu.ts [copy] [norm] [layer_norm] [cross_entropy] [gate] [rope] [embedding]
 *       [row_normalize] [row_scale] [reduce] [cast] [adamw] [matmul] [attention] [step]
 *       [--types=float32,split,packed,float16,bfloat16] [--shapes=4096x4096x4096nn] [--model=124M] [--batch=4]
 *       [--tokens=1024] [--steps=40] [--profile] [--forms] [--copies] [--warm=0.4] [--bounds_checks]
 *
 * With `--copies` each kernel that moves memory is timed beside a copy of as many bytes; `--warm` is the seconds that a kernel
 * runs before it is timed. With `--forms` every form of a kernel that a tuner may choose is timed, the shipped one first, and named in its line.
 * `TROUPE_WEBGPU=dawn` measures through Dawn, without its bounds checks unless `--bounds_checks` asks for them. Prints one
 * JSON object a line; with `--profile` a table of kernels of one training step goes to standard error. Times of kernels are
 * the device's, medians of seven; a step is timed whole, its loss read back.
 */
import { adamw } from "../../kernels/adamw/mod.ts";
import { crossEntropyBackward, crossEntropyForward } from "../../kernels/cross_entropy/mod.ts";
import { add, cast, scale } from "../../kernels/elementwise/mod.ts";
import { embeddingForward, embeddingGradient, groupTokens } from "../../kernels/embedding/mod.ts";
import { pairedGateBackward, pairedGateForward } from "../../kernels/gate/mod.ts";
import { encode, type FloatType, isHalf } from "../../kernels/host.ts";
import { attentionBackward, attentionForward } from "../../kernels/attention/mod.ts";
import { type DeviceTraits, elementBytes, type Kernel } from "../../kernels/kernel.ts";
import { matmul } from "../../kernels/matmul/mod.ts";
import {
  layerNormBackward,
  layerNormForward,
  layerNormWeightGradient,
  rmsNormBackward,
  rmsNormForward,
  rmsNormWeightGradient,
} from "../../kernels/norm/mod.ts";
import { columnSum, squaredNorm } from "../../kernels/reduce/mod.ts";
import { joinHeads, splitHeads } from "../../kernels/rope/heads.ts";
import { rotate } from "../../kernels/rope/mod.ts";
import { rowScaleBackward, rowScaleForward } from "../../kernels/row_scale/mod.ts";
import { rowNormalizeBackward, rowNormalizeForward } from "../../kernels/row_normalize/mod.ts";
import { randomUniform } from "../../kernels/testing.ts";
import type { Backend, Range } from "../../src/backend/backend.ts";
import { openWebGpuBackend } from "../../src/backend/webgpu/backend.ts";
import { endWithoutTeardown } from "../../src/backend/webgpu/dawn.ts";
import { defaultProvider } from "../../src/backend/webgpu/provider.ts";
import { loadConfig, resolveConfig } from "../../src/config/mod.ts";
import { createTrainLoader } from "../../src/data/mod.ts";
import { formatKernelProfile, kernelProfile } from "../../src/observe/kernel_profile.ts";
import { Session } from "../../src/train/session.ts";
import {
  type BenchType,
  modelSettings,
  type ModelSize,
  modelSizes,
  typeSettings,
  vocabulary,
} from "../../src/cli/bench_models.ts";
import { countObjects } from "./dawn_objects.ts";

const matmuls =
  ("4096x4096x4096nn 8192x8192x8192nn 4096x768x768nt 4096x2048x768nt 4096x768x2048nt 4096x50304x768nt 4096x768x768nn " +
    "4096x768x2048nn 4096x2048x768nn 4096x768x50304nn 768x768x4096tn 2048x768x4096tn 768x2048x4096tn 50304x768x4096tn")
    .split(" ");

const median = (values: number[]) => values.sort((a, b) => a - b)[values.length >> 1]!;

interface Form {
  /** Absent of a kernel that has one form alone. */
  readonly form?: string;
  readonly kernel: Kernel;
}

/** A kernel as it ships, or each of the forms that its first choice is of. */
function formsOf(kernel: Kernel, traits: DeviceTraits): readonly Form[] {
  if (!Deno.args.includes("--forms")) return [{ kernel }];
  let first: { readonly question: string; readonly candidates: readonly string[] } | undefined;
  const asking = {
    of(question: string, candidates: readonly string[]) {
      first ??= { question, candidates };
      return undefined;
    },
  };
  kernel.passes({ ...traits, choices: asking });
  if (first === undefined) return [{ kernel }];
  const { question, candidates } = first;
  return candidates.map((form) => {
    const choices = { of: (asked: string) => asked === question ? form : undefined };
    return { form, kernel: { ...kernel, passes: (actual) => kernel.passes({ ...actual, choices }) } };
  });
}

/** Seconds of a kernel on random data; its operands are freed again. */
async function secondsOf(
  backend: Backend,
  kernel: Kernel,
  fill: (name: string) => ArrayBufferView | undefined = () => undefined,
) {
  const random = randomUniform(1 << 20, 7).map((value) => value - 0.5);
  const ranges = kernel.operands.map(({ name, type, length, access }): Range => {
    const bytes = Math.ceil(elementBytes[type] * length / 4) * 4;
    const range = { buffer: backend.allocate(bytes, name), offset: 0, bytes };
    const data = fill(name);
    if (data !== undefined) backend.upload(range, data);
    else if (access !== "scratch") {
      const block = isHalf(type) ? encode(type, random) : random;
      for (let at = 0; at < bytes; at += block.byteLength) {
        const part = new Uint8Array(block.buffer, 0, Math.min(block.byteLength, bytes - at));
        backend.upload({ ...range, offset: at, bytes: part.byteLength }, part);
      }
    }
    return range;
  });
  const list = await backend.prepare(Array.from({ length: 7 }, () => ({ kind: "dispatch" as const, kernel, ranges })));
  // An idle GPU clocks down and takes a good part of a second of unbroken work to come back.
  backend.submit(list);
  const first = await backend.profile!(() => backend.submit(list));
  const once = first.reduce((sum, { seconds }) => sum + seconds, 0);
  for (let run = 0; run < Math.min(1000, warm / once); run++) backend.submit(list);
  const timings = await backend.profile!(() => backend.submit(list));
  await backend.finish();
  ranges.forEach(({ buffer }) => backend.release(buffer));
  return median(timings.map(({ seconds }) => seconds));
}

/** From now until it is asked: the seconds that calls of a method take. */
function timed(backend: Backend, method: "prepare" | "upload"): () => number {
  const call = backend[method] as (...given: unknown[]) => unknown;
  let seconds = 0;
  const timer = async (...given: unknown[]) => {
    const started = performance.now(),
      result = call(...given),
      done = () => {
        seconds += (performance.now() - started) / 1000;
      };
    if (method === "upload") return done();
    return await Promise.resolve(result).finally(done);
  };
  Object.assign(backend, { [method]: timer });
  return () => {
    Object.assign(backend, { [method]: call });
    return seconds;
  };
}

interface StepOptions {
  readonly type: string;
  readonly model: string;
  readonly batch: number;
  readonly tokens: number;
  readonly steps: number;
  readonly profiled: boolean;
}

async function benchmarkStep(
  backend: Backend,
  report: (fields: object) => void,
  { type, model, batch, tokens, steps, profiled }: StepOptions,
) {
  const { layers, hidden } = modelSizes[model as ModelSize];
  const set = [
    ...modelSettings(model as ModelSize, { batch, tokens }),
    ...typeSettings(type as BenchType),
    `data.total_steps=${steps + 10}`,
  ];
  const config = resolveConfig(await loadConfig("configs/demo.yaml", { set }), {});
  const opened = performance.now(), compiling = timed(backend, "prepare"), uploading = timed(backend, "upload");
  using session = await Session.open(config, { backend, onNotice: (line) => console.error(line) });
  const open = {
    open_seconds: (performance.now() - opened) / 1000,
    open_compile_seconds: compiling(),
    open_upload_seconds: uploading(),
  };
  const loader = createTrainLoader(config.data, { dataRank: 0, dataWorldSize: 1 });
  const seconds: number[] = [], submits: number[] = [];
  let loss = 0, trained = 0;
  const counted = { objects: 0, polls: 0 };
  for (let step = 0; step < steps; step++) {
    if (step === steps >> 1) Object.assign(counted, counts);
    const batch = await loader.next();
    const result = await session.step(batch);
    seconds.push(result.seconds);
    submits.push(session.trainer.times.submit);
    loss = result.loss;
    trained = batch.tokens;
  }
  const each = median(seconds.slice(steps / 2)), { parameterCount } = session.trainer.model;
  const work = (6 * (parameterCount - vocabulary * hidden) + 6 * layers * hidden * tokens) * trained;
  report({
    bench: "step",
    type,
    model,
    batch,
    tokens,
    parameters: parameterCount,
    seconds: each,
    tokens_per_second: trained / each,
    tflops: work / each / 1e12,
    loss,
    ...open,
    submit_seconds: median(submits.slice(steps / 2)),
    objects_a_step: (counts.objects - counted.objects) / (steps - (steps >> 1)),
    polls_a_step: (counts.polls - counted.polls) / (steps - (steps >> 1)),
    allocated_bytes: backend.allocatedBytes,
  });
  if (profiled) {
    const timings = await backend.profile!(async () => {
      await session.step(await loader.next());
    });
    console.error(`${model} ${type} ${batch} x ${tokens}`);
    console.error(formatKernelProfile(kernelProfile(timings), { most: 60 }));
  }
  loader.close();
}

const words = Deno.args.filter((argument) => !argument.startsWith("--"));
const option = (name: string) => Deno.args.find((word) => word.startsWith(`--${name}=`))?.slice(name.length + 3);
const model = option("model") ?? "124M", types = (option("types") ?? "float32").split(",");
if (!(model in modelSizes)) {
  throw new RangeError(`--model is one of ${Object.keys(modelSizes).join(", ")}, got ${model}`);
}
/** What operands are stored as. */
const stored = (type: string): FloatType => {
  const known: Readonly<Record<string, FloatType>> = {
    float32: "f32",
    split: "f32",
    packed: "f16",
    float16: "f16",
    bfloat16: "bf16",
  };
  if (known[type] === undefined) throw new RangeError(`--types are of ${Object.keys(known).join(", ")}, got ${type}`);
  return known[type];
};
const warm = Number(option("warm") ?? 0.4);
const wanted = (word: string) => words.length === 0 || words.includes(word);
if (defaultProvider() === "dawn") endWithoutTeardown();
const boundsChecks = Deno.args.includes("--bounds_checks");
const counts = await countObjects(defaultProvider());
const backend = await openWebGpuBackend(defaultProvider(), { boundsChecks });
if (!backend.profile) throw new Error(`${backend.traits.description} offers no timestamps: nothing can be timed`);
const report = (fields: object) =>
  console.log(
    JSON.stringify({
      peer: "troupe",
      provider: backend.traits.provider,
      device: backend.traits.description,
      ...(boundsChecks && { bounds_checks: true }),
      ...fields,
    }),
  );

/** Kernels that only move memory, of activations of a type, by word: pass and shape for people, the kernel, and whole numbers that it reads. */
type Moving = readonly [
  pass: string,
  shape: string,
  kernel: Kernel,
  fill?: (operand: string) => Uint32Array | undefined,
  /** Least bytes, where the numbers that are read decide them. */
  bytes?: number,
];
function* memoryBound(type: FloatType): Generator<readonly [word: string, kernels: readonly Moving[]]> {
  // Beside large ones, as many bytes as smaller kernels move.
  for (const mebibytes of [1024, 320, 208, 80, 64, 32, 12]) {
    const bytes = mebibytes << 20;
    yield ["copy", [["copy", `${bytes} bytes`, scale({ length: bytes / elementBytes[type], factor: 1, type })]]];
  }
  yield ["copy", [["add", `${1 << 26}`, add({ length: 1 << 26, type })]]];
  // Of two sizes: what a copy of few bytes takes beyond its bytes, others take too.
  for (const rows of [65536, 8192]) {
    const norm = { rows, columns: 2048, type }, shape = `${rows} x 2048`;
    yield ["norm", [
      ["forward", shape, rmsNormForward({ ...norm, epsilon: 1e-5 })],
      ["backward", shape, rmsNormBackward(norm)],
      ["weight gradient", shape, rmsNormWeightGradient({ ...norm, accumulate: false })],
    ]];
    yield ["layer_norm", [
      ["forward", shape, layerNormForward({ ...norm, epsilon: 1e-5 })],
      ["backward", shape, layerNormBackward(norm)],
      ["weight gradient", shape, layerNormWeightGradient({ ...norm, accumulate: false })],
    ]];
    yield ["reduce", [["column sum", shape, columnSum(norm)]]];
    const scaled = { ...norm, ways: 2, way: 1, sigmoid: true };
    yield ["row_scale", [
      ["forward", shape, rowScaleForward(scaled)],
      ["backward", shape, rowScaleBackward(scaled)],
    ]];
  }
  const logits = { rows: 4096, columns: vocabulary, labelSmoothing: 0, type };
  const labels = Uint32Array.from({ length: logits.rows }, (_, i) => i * 7919 % vocabulary);
  const labelled = (operand: string) => operand === "labels" ? labels : undefined;
  yield ["cross_entropy", [
    ["forward", `${logits.rows} x ${vocabulary}`, crossEntropyForward(logits), labelled],
    ["backward", `${logits.rows} x ${vocabulary}`, crossEntropyBackward(logits), labelled],
  ]];
  const gates = { rows: 8192, columns: 5632, activation: "silu", type } as const;
  yield ["gate", [
    ["forward", "8192 x 5632", pairedGateForward(gates)],
    ["backward", "8192 x 5632", pairedGateBackward(gates)],
  ]];
  const positions = Uint32Array.from({ length: 8192 }, (_, i) => i % 1024);
  const turn = { tokens: 8192, heads: 16, headDim: 128, positionsLength: 1024, interleaved: false, type };
  const placed = (operand: string) => operand === "positions" ? positions : undefined;
  yield ["rope", [
    ["rotate", "8192 x 16 x 128", rotate(turn), placed],
    ["split heads", "8192 x (16 + 2 x 16) x 128", splitHeads({ ...turn, kvHeads: 16 }), placed],
    ["join heads", "8192 x (16 + 2 x 16) x 128", joinHeads({ ...turn, kvHeads: 16 }), placed],
  ]];
  for (const [tokens, columns] of [[4096, 768], [32768, 768], [32768, 2048]] as const) {
    const sizes = { tokens, vocabulary, columns, type };
    const spreads = {
      // As in texts: the n-th word as often as 1/n.
      words: (u: number) => Math.min(vocabulary - 1, Math.floor(vocabulary ** u) - 1),
      evenly: (u: number) => Math.floor(vocabulary * u),
      "one id": () => 7,
    };
    for (const [spread, idOf] of Object.entries(spreads)) {
      const ids = Uint32Array.from(randomUniform(tokens, 3), idOf), rows = new Set(ids).size;
      const groups = groupTokens(ids);
      const fill = (operand: string) => operand === "ids" ? ids : operand === "groups" ? groups : undefined;
      const shape = `${tokens} of ${vocabulary} x ${columns}, ${spread}`;
      const [once, all] = [columns * rows, elementBytes[type] * columns * tokens + 4 * tokens];
      yield ["embedding", [
        ["forward", shape, embeddingForward(sizes), fill, elementBytes[type] * once + all],
        ["gradient", shape, embeddingGradient(sizes), fill, 2 * 4 * once + all],
      ]];
    }
  }
  const head = { rows: vocabulary, columns: 768, type }, headShape = `${vocabulary} x 768`;
  yield ["row_normalize", [
    ["forward", headShape, rowNormalizeForward(head)],
    ["backward", headShape, rowNormalizeBackward({ ...head, accumulate: true })],
  ]];
  yield ["reduce", [["squared norm", `${1 << 27}`, squaredNorm({ length: 1 << 27, type })]]];
  yield ["adamw", [
    ["update", `${1 << 27}`, adamw({ length: 1 << 27, ...(type !== "f32" && { modelType: type }) })],
  ]];
  if (type !== "f32") return;
  yield ["cast", [
    ["to float16", `${1 << 26}`, cast({ length: 1 << 26, from: "f32", to: "f16" })],
    ["to bfloat16", `${1 << 26}`, cast({ length: 1 << 26, from: "f32", to: "bf16" })],
  ]];
}
const copies = new Map<number, number>();
/** GB/s of a copy that moves so many bytes, reads and writes together. */
async function copySpeed(bytes: number): Promise<number> {
  const length = Math.min(2 ** 28, Math.max(1, Math.round(bytes / 2 ** 19)) * 2 ** 16), known = copies.get(length);
  const speed = known ?? 8 * length / await secondsOf(backend, scale({ length, factor: 1 })) / 1e9;
  copies.set(length, speed);
  return speed;
}
for (const type of types) {
  for (const [word, kernels] of memoryBound(stored(type))) {
    if (!wanted(word)) continue;
    for (const [pass, shape, kernel, fill, bytes = kernel.cost.bytes] of kernels) {
      for (const { form, kernel: formed } of formsOf(kernel, backend.traits)) {
        const seconds = await secondsOf(backend, formed, fill), gbps = bytes / seconds / 1e9;
        const copy_gbps = Deno.args.includes("--copies") && word !== "copy" ? await copySpeed(bytes) : undefined;
        report({ bench: word, type, pass, shape, form, seconds, gbps, copy_gbps });
      }
    }
  }
}
for (const type of types) {
  const half = stored(type);
  if (wanted("matmul")) {
    for (const shape of option("shapes")?.split(",") ?? matmuls) {
      const [m, n, k] = shape.split("x").map((part) => parseInt(part)) as [number, number, number],
        form = shape.slice(-2);
      const kernel = matmul({
        m,
        n,
        k,
        transposeA: form[0] === "t",
        transposeB: form[1] === "t",
        types: { a: half, b: half, c: form[0] === "t" ? "f32" : half }, // a weight's gradient is summed in f32
        split: type === "split",
        packed: type === "packed",
      });
      for (const { form: tiling, kernel: formed } of formsOf(kernel, backend.traits)) {
        const seconds = await secondsOf(backend, formed), tflops = kernel.cost.flops / seconds / 1e12;
        report({ bench: "matmul", type, form, shape: kernel.shape, tiling, seconds, tflops });
      }
    }
  }
  if (wanted("attention") && type !== "split" && type !== "packed") {
    for (const [batch, heads, tokens, headDim] of [[4, 16, 2048, 64], [4, 12, 1024, 64], [4, 16, 2048, 128]] as const) {
      const sizes = { tokens: batch * tokens, longest: tokens, heads, kvHeads: heads, headDim, type: half };
      const first = (i: number) => Math.floor(i / tokens) * tokens;
      const fill = (name: string) =>
        name === "start"
          ? Uint32Array.from({ length: batch * tokens }, (_, i) => first(i))
          : name === "end"
          ? Uint32Array.from({ length: batch * tokens }, (_, i) => first(i) + tokens)
          : undefined;
      const backwards = new Map(
        formsOf(attentionBackward(sizes), backend.traits).map(({ form, kernel }) => [form, kernel]),
      );
      for (const { form, kernel } of formsOf(attentionForward(sizes), backend.traits)) {
        const forward = await secondsOf(backend, kernel, fill);
        const backward = await secondsOf(backend, backwards.get(form)!, fill);
        const work = 2 * batch * heads * headDim * tokens * (tokens + 1) / 2;
        report({
          bench: "attention",
          type,
          shape: `${batch} x ${heads} x ${tokens} x ${headDim}`,
          form,
          forward,
          both: forward + backward,
          tflops_forward: 2 * work / forward / 1e12,
          tflops: 7 * work / (forward + backward) / 1e12,
        });
      }
    }
  }
  if (wanted("step")) {
    await benchmarkStep(backend, report, {
      type,
      model,
      batch: Number(option("batch") ?? 4),
      tokens: Number(option("tokens") ?? 1024),
      // Enough for an idle GPU's clock to come up.
      steps: Number(option("steps") ?? { "124M": 40, "350M": 20, "1.3B": 12 }[model]),
      profiled: Deno.args.includes("--profile"),
    });
  }
}
backend[Symbol.dispose]();
