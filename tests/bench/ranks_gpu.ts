/**
 * Ranks that share one GPU: tokens a second by tokens a step, for 1, 2 and 4 ranks, in one call of about five minutes on an
 * H200.
 *
 *     deno run --allow-all tests/bench/ranks_gpu.ts [--ranks=1,2,4] [--tokens=8192,32768,131072,262144,524288]
 *       [--dtype=float32] [--steps=2] [--ways=plain,overlapped] [--set=section.field=value,…] [--rehearse]
 *
 * `TROUPE_WEBGPU=dawn` measures through Dawn. The 124M model on made-up tokens, rows of 1,024, four to a micro-batch where
 * there are as many; the optimizer's state is divided. Each rank is a process with its communicator in a worker, as in a
 * run. Prints one JSON object a line: `of_one` is the ratio to one rank's speed at the same size. Ways: `plain` without and
 * `overlapped` with `overlap_sync_grad`, `overlap_sync_param` and `use_split_tensor_optim` (from 131,072 tokens on); either
 * `in turns` too (`runtime.gpu_turns`); `apart`, where ranks exchange nothing: what sharing the GPU alone costs. Phases are
 * rank 0's and the last rank's, seconds a step; memory is touched for the first time in steps before those that count.
 * `--timelines` tells when each rank did what in the last step. `--rehearse` takes a tiny model on the CPU, to see that all of it runs.
 */
import { fileURLToPath } from "node:url";
import { Progress } from "../../actors/progress.ts";
import { createRuntime } from "../../actors/runtime/mod.ts";
import { openBackend } from "../../src/backend/open.ts";
import { defaultProvider } from "../../src/backend/webgpu/provider.ts";
import { modelSettings } from "../../src/cli/bench_models.ts";
import { joinRoot, meet } from "../../src/cli/rank.ts";
import { FlightRecorder } from "../../src/observe/flight_recorder.ts";
import { recordedSpans } from "../../src/observe/trace.ts";
import { hostSockets, rankEnvironment } from "../../src/cli/rank_process.ts";
import { listenControl } from "../../src/comm/control.ts";
import { openRendezvous } from "../../src/comm/transport/rendezvous.ts";
import { loadConfig, resolveConfig } from "../../src/config/mod.ts";
import { createTrainLoader } from "../../src/data/mod.ts";
import { dummySamplesPerRank } from "../../src/data/train_loader.ts";
import { runMesh } from "../../src/parallel/run_mesh.ts";
import { createWorld, solo } from "../../src/parallel/world.ts";
import { Session } from "../../src/train/session.ts";

const option = (name: string, otherwise: string) =>
  Deno.args.find((arg) => arg.startsWith(`--${name}=`))?.slice(name.length + 3) ?? otherwise;
const rehearse = Deno.args.includes("--rehearse"), hostname = "127.0.0.1", version = "bench";
const row = rehearse ? 16 : 1024;
const sizes = option("tokens", rehearse ? "64,256" : "8192,32768,131072,262144,524288").split(",").map(Number);
const overlappedFrom = rehearse ? 256 : 131_072;
const steps = Number(option("steps", "2")), timelines = Deno.args.includes("--timelines");

interface Task {
  readonly rank: number;
  readonly world: number;
  readonly meetingPort: number;
}

interface Span {
  readonly name: string;
  readonly begin: number;
  readonly end: number;
}

/** What happened when, in milliseconds since `zero`; passes that were queued one after the other are one entry. */
function tellSpans(spans: readonly Span[], zero: number): string {
  const told: { name: string; begin: number; end: number }[] = [];
  for (const { name, begin, end } of spans.toSorted((a, b) => a.begin - b.begin)) {
    const short = name.replace(/^(forward|backward) .*/, "passes"), last = told.at(-1);
    if (short === "passes" && last?.name === short) last.end = end;
    else told.push({ name: short, begin, end });
  }
  return told.map(({ name, begin, end }) => `${name} ${Math.round(begin - zero)}-${Math.round(end - zero)}`).join(", ");
}

/** Rows to a micro-batch: four, where every rank has as many. */
const rowsOf = (tokens: number, world: number) => Math.min(4, tokens / row / world);

async function child(): Promise<void> {
  const { rank, world, meetingPort }: Task = JSON.parse(await new Response(Deno.stdin.readable).text());
  const runtime = createRuntime();
  const meeting = { hostname, port: meetingPort, world, fingerprint: version, encrypt: false, timeoutMs: 120_000 };
  const recorder = new FlightRecorder();
  const communicator = world > 1 ? await meet(await joinRoot(runtime, new Progress(), recorder), meeting) : undefined;
  using opened = await openBackend(rehearse ? "cpu" : "webgpu", { provider: defaultProvider(), boundsChecks: false });
  const backend = rehearse ? { ...opened, traits: { ...opened.traits, software: false } } : opened;
  const ways = world === 1 ? ["plain"] : option("ways", "plain,overlapped,overlapped in turns").split(",");
  // A model is opened once for all sizes with as many rows to a micro-batch.
  const openings = Map.groupBy(
    ways.flatMap((way) => sizes.map((tokens) => ({ way, tokens, rows: rowsOf(tokens, world) })))
      .filter(({ way, tokens, rows }) => rows >= 1 && (!way.startsWith("overlapped") || tokens >= overlappedFrom)),
    ({ way, rows }) => `${way.split(" ")[0]} ${rows}`,
  );
  for (const runs of openings.values()) {
    const { way: first, rows } = runs[0]!,
      apart = first === "apart",
      most = Math.max(...runs.map(({ tokens }) => tokens)) / row / rows / world;
    const overlap = first.startsWith("overlapped");
    const tiny = ["model.num_layers=2", "model.hidden_size=32", "model.num_attention_heads=2", "model.vocab_size=512"];
    const set = [
      ...modelSettings("124M", { batch: rows, tokens: row }),
      ...(rehearse ? [...tiny, "model.num_kv_attention_heads=2"] : []),
      `model.dtype=${option("dtype", "float32")}`,
      `data.micro_num=${most}`,
      "data.total_steps=1000",
      "parallel.zero1.size=-1",
      `hybrid_zero_optimizer.overlap_sync_grad=${overlap}`,
      `hybrid_zero_optimizer.overlap_sync_param=${overlap}`,
      `hybrid_zero_optimizer.use_split_tensor_optim=${overlap}`,
      ...option("set", "").split(",").filter(Boolean),
    ];
    const resolved = resolveConfig(await loadConfig("configs/demo.yaml", { set }), { worldSize: apart ? 1 : world });
    const config = { ...resolved, runtime: { ...resolved.runtime } };
    const together = communicator?.group("bench", Array.from({ length: world }, (_, i) => i));
    const here = communicator && !apart ? createWorld(runMesh(config, { rank, world }), communicator) : solo;
    const began = performance.now();
    using session = await Session.open(config, { backend, world: here });
    const openSeconds = (performance.now() - began) / 1000;
    // The made-up set has no more rows; larger steps take several batches.
    const micro_num = Math.min(most, Math.floor(dummySamplesPerRank / rows));
    const loader = createTrainLoader({ ...config.data, micro_num }, { dataRank: rank, dataWorldSize: world });
    let warm = false;
    for (const { tokens, way } of runs) {
      // It is asked in every step.
      Object.assign(config.runtime, { gpu_turns: way.endsWith("in turns") });
      const count = tokens / row / rows / world, seconds: number[] = [], phases = new Map<string, number>();
      let timeline = "";
      // Parameters go round for the first time in the second step, where that overlaps.
      for (let step = overlap && !warm ? -1 : 0; step <= steps; step++) {
        const whole = await loader.next(), microBatches = whole.microBatches.slice(0, count);
        while (microBatches.length < count) {
          microBatches.push(...(await loader.next()).microBatches.slice(0, count - microBatches.length));
        }
        const spans: Span[] = [];
        session.trainer.onSpan = (name, begin, end) => {
          spans.push({ name, begin, end });
          if (step > 0) phases.set(name, (phases.get(name) ?? 0) + (end - begin) / 1000 / steps);
        };
        await together?.barrier();
        const started = performance.now(), { next } = recorder.since(Infinity);
        await session.step({ ...whole, microBatches, globalRows: count * (apart ? 1 : world) });
        const ended = performance.now();
        if (apart) await together?.barrier();
        if (step <= 0) continue;
        seconds.push((performance.now() - started) / 1000);
        const shared = recordedSpans(recorder.since(next).records).filter(({ name }) => !name.includes("bench"));
        timeline = `${tellSpans(spans, started)} | step over ${Math.round(ended - started)} || ${
          tellSpans(
            shared.map((span) => ({ ...span, name: span.name.replace(/ of (.*),? (\d+) of .*$/, " $1 $2") })),
            started,
          )
        }`;
      }
      await session.trainer.gather();
      warm = true;
      const told = Object.fromEntries(
        [...phases].filter(([name]) => !/micro-batch/.test(name)).map((
          [name, value],
        ) => [name, Number(value.toPrecision(3))]),
      );
      const own = new TextEncoder().encode(JSON.stringify({ told, timeline })), room = 1 << 16;
      const all = new Uint8Array(room * world);
      all.set(own.subarray(0, room), room * rank);
      await together?.allGather(all);
      if (rank > 0) continue;
      const of = (place: number): { told: Record<string, number>; timeline: string } =>
        JSON.parse(new TextDecoder().decode(all.subarray(room * place, room * (place + 1))).replaceAll("\0", ""));
      const each = Math.min(...seconds);
      console.log(JSON.stringify({
        bench: "ranks_gpu",
        device: backend.traits.description,
        way,
        ranks: world,
        tokens,
        seconds: each,
        tokens_per_second: tokens / each,
        phases: told,
        ...(world > 1 ? { last_rank: of(world - 1).told } : {}),
        open_seconds: openSeconds,
        // Of the last step; two bars between what the rank's own thread did and what its communicator had under way.
        ...(timelines ? { timelines: Array.from({ length: world }, (_, place) => of(place).timeline) } : {}),
      }));
    }
  }
  await runtime.stop();
  Deno.exit(0);
}

/** Hands on line by line, as they come. */
function lines(each: (line: string) => void): UnderlyingSink<Uint8Array> {
  const decoder = new TextDecoder();
  let rest = "";
  return {
    write(chunk) {
      const whole = (rest + decoder.decode(chunk, { stream: true })).split("\n");
      rest = whole.pop()!;
      whole.forEach(each);
    },
  };
}

async function parent(): Promise<void> {
  const alone = new Map<number, number>();
  const tell = (world: number, figures: { readonly tokens: number; readonly tokens_per_second: number }) => {
    if (world === 1) alone.set(figures.tokens, figures.tokens_per_second);
    const one = alone.get(figures.tokens);
    console.log(JSON.stringify({ ...figures, ...(one ? { of_one: figures.tokens_per_second / one } : {}) }));
  };
  for (const world of option("ranks", "1,2,4").split(",").map(Number)) {
    const token = crypto.randomUUID(), sockets = hostSockets(world);
    await using control = listenControl({ hostname, port: 0, token, onValue: () => {} });
    const meeting = openRendezvous({ hostname, token, world, fingerprint: version, timeoutMs: 120_000 });
    try {
      const outputs = Array.from({ length: world }, async (_, rank) => {
        const process = new Deno.Command(Deno.execPath(), {
          args: ["run", "--quiet", "--allow-all", fileURLToPath(import.meta.url), "--child", ...Deno.args],
          env: rankEnvironment({
            rank,
            localRank: rank,
            world,
            attempt: 0,
            control: { hostname, port: control.port },
            token,
            address: hostname,
            sockets,
          }),
          stdin: "piped",
          stdout: "piped",
          stderr: "piped",
        }).spawn();
        const task: Task = { rank, world, meetingPort: meeting.port };
        await new Blob([JSON.stringify(task)]).stream().pipeTo(process.stdin);
        const [{ success }, , stderr] = await Promise.all([
          process.status,
          process.stdout.pipeTo(new WritableStream(lines((line) => tell(world, JSON.parse(line))))),
          new Response(process.stderr).text(),
        ]);
        return { success, stderr };
      });
      const failed = (await Promise.all(outputs)).find(({ success }) => !success);
      if (failed) throw new Error(`A rank of ${world} failed:\n${failed.stderr.trim()}`);
    } finally {
      if (world > 1) await meeting.complete.catch(() => {});
      await meeting.close();
    }
  }
}

await (Deno.args.includes("--child") ? child() : parent());
