/**
 * `troupe bench sync`: what ranks exchange in a step, by the path that they use, without the model's computing. Each rank is
 * a process with its device, its communicator in a worker, and the plan of its own part; gradients are reduced and
 * parameters gathered as after a backward pass and an update. Floors, measured between rounds by the same processes, say
 * what copying, adding and a bare connection take.
 */
import process from "node:process";
import { createRuntime } from "../../actors/runtime/mod.ts";
import { Progress } from "../../actors/progress.ts";
import { encode, type FloatType, isHalf } from "../../kernels/host.ts";
import { elementBytes } from "../../kernels/kernel.ts";
import type { Range } from "../backend/backend.ts";
import { type BackendName, deviceOptions, openBackend } from "../backend/open.ts";
import { accumulate } from "../comm/collectives/elements.ts";
import { listenControl } from "../comm/control.ts";
import { openRendezvous } from "../comm/transport/rendezvous.ts";
import type { ResolvedConfig } from "../config/mod.ts";
import { drive, type Program } from "../graph/program.ts";
import { FlightRecorder } from "../observe/flight_recorder.ts";
import { Synchronizer } from "../optimizer/synchronize.ts";
import { partBytes } from "../optimizer/zero.ts";
import { runMesh } from "../parallel/run_mesh.ts";
import { createWorld } from "../parallel/world.ts";
import { planModel } from "../train/model.ts";
import { type BenchLine, type Report, round, secondsSince, spread } from "./bench_line.ts";
import { benchRanks } from "./bench_ranks.ts";
import { joinRoot, meet } from "./rank.ts";
import { hostSockets, rankEnvironment } from "./rank_process.ts";

const hostname = "127.0.0.1", version = "bench";

interface Task {
  readonly rank: number;
  readonly world: number;
  readonly meetingPort: number;
  readonly config: ResolvedConfig;
  readonly backend: BackendName;
  readonly repeats: number;
}

/** What is on record of one phase in one round. */
interface Phase {
  seconds: number;
  bytes: number;
  count: number;
}

/** Processor seconds of this process, all threads. */
const processorSeconds = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
};

/** Adds up what a synchronizer tells. */
function phases() {
  const all = new Map<string, Phase>();
  return {
    all,
    onSpan(name: string, begin: number, end: number, { args = {} }: { args?: Readonly<Record<string, unknown>> } = {}) {
      const phase = all.get(name) ?? { seconds: 0, bytes: 0, count: 0 };
      all.set(name, phase);
      phase.seconds += (end - begin) / 1000;
      phase.bytes += args.bytes as number;
      phase.count++;
    },
  };
}

/** Seconds in which at least one collective was under way, as the communicator noted them. */
function underWay(recorder: FlightRecorder, since: number): number {
  let open = 0, from = 0, total = 0;
  for (const { at, text } of recorder.since(since).records) {
    if (text.endsWith(": begun") && open++ === 0) from = at;
    else if (text.endsWith(": done") && --open === 0) total += at - from;
  }
  return total / 1000;
}

/** The least that moving bytes takes here, in GB/s: a copy between warm memory, and a sum of pieces in the cache. */
function floors(): { copy: number; sum: number } {
  const bytes = 64 << 20, a = new Float32Array(new SharedArrayBuffer(bytes)).fill(1), b = a.slice();
  const piece = new Float32Array(new SharedArrayBuffer(1 << 20)).fill(1), best = { copy: 0, sum: 0 };
  for (let i = 0; i < 5; i++) {
    let began = performance.now();
    a.set(b);
    best.copy = Math.max(best.copy, bytes / (performance.now() - began) / 1e6);
    began = performance.now();
    for (let at = 0; at < a.length; at += piece.length) accumulate(a.subarray(at, at + piece.length), piece, "sum");
    best.sum = Math.max(best.sum, bytes / (performance.now() - began) / 1e6);
  }
  return best;
}

/** Memory on the device for what ranks exchange, parameters as the passes read them and gradients, in place of a whole program. */
function stubProgram(
  backend: Awaited<ReturnType<typeof openBackend>>,
  { arenas, parameterArenas, parameters }: Pick<Program["plan"], "arenas" | "parameterArenas" | "parameters">,
) {
  const gradients = arenas.map((bytes) => backend.allocate(bytes, "gradient"));
  const stored = parameterArenas.map((bytes) => backend.allocate(bytes, "parameter"));
  const places = new Map(parameters.map((place) => [place.name, place]));
  const storedRange: Program["storedRange"] = (part) => {
    const { arena, offset, type } = places.get(part.name)!.read;
    return {
      buffer: stored[arena]!,
      offset: offset + elementBytes[type] * part.begin,
      bytes: partBytes(part, isHalf(type)),
    };
  };
  return {
    backend,
    typeOf: (name: string) => places.get(name)!.read.type,
    partRange: (_kind, { name, begin, end }) => {
      const { arena, offset } = places.get(name)!;
      return { buffer: gradients[arena]!, offset: offset + 4 * begin, bytes: 4 * (end - begin) };
    },
    storedRange,
    writeStored: (part, bytes) => backend.upload(storedRange(part), bytes),
  } satisfies Pick<Program, "backend" | "partRange" | "storedRange" | "writeStored"> & Record<string, unknown>;
}

/** One rank, in a process of its own. Its task comes on standard input; rank 0 prints the lines. */
export async function syncChild(): Promise<void> {
  const { rank, world, meetingPort, config, backend: name, repeats }: Task = JSON.parse(
    await new Response(Deno.stdin.readable).text(),
  );
  const runtime = createRuntime(), recorder = new FlightRecorder();
  const communicator = await joinRoot(runtime, new Progress(), recorder);
  const meeting = { hostname, port: meetingPort, world, fingerprint: version, encrypt: false, timeoutMs: 60_000 };
  const mesh = runMesh(config, { rank, world }), groups = createWorld(mesh, await meet(communicator, meeting));
  const everyone = groups.group("data");
  using backend = await openBackend(name, deviceOptions(config.runtime));
  const { plan, zero } = planModel(config, backend.traits, mesh), program = stubProgram(backend, plan);
  const synchronizers = zero.map(({ reduce, partition, ...parcels }) =>
    new Synchronizer({ program, data: groups.group(reduce), zero: groups.group(partition), ...parcels })
  );
  const own = zero.flatMap(({ division, partition }) =>
    division.filter(({ owner }) => owner === mesh.index(partition) || mesh.size(partition) === 1)
  );
  const all = zero.flatMap(({ division }) => division);
  /** A word full of a number. */
  const wordOf = (type: FloatType, value: number) =>
    new Uint32Array(isHalf(type) ? encode(type, [value, value]).buffer : Float32Array.of(value).buffer)[0]!;
  const starts = ({ buffer, offset }: Range, word: number) => {
    const place = new Uint32Array(1);
    backend.readInto([{ buffer, offset, bytes: 4 }], [new Uint8Array(place.buffer)]).take();
    return place[0] === word;
  };
  const fill = (range: Range, word: number) => backend.upload(range, new Uint32Array(range.bytes / 4).fill(word));
  for (const part of all) fill(program.partRange("gradient", part), wordOf("f32", rank + 1));
  for (const part of own) fill(program.storedRange(part), wordOf(program.typeOf(part.name), rank + 1));

  const print = (line: BenchLine) => {
    if (rank === 0) console.log(JSON.stringify(line));
  };
  const bytes = all.reduce((sum, { begin, end }) => sum + 4 * (end - begin), 0);
  const samples = new Map<string, number[]>();
  const sample = (figure: string, value: number) => samples.set(figure, [...samples.get(figure) ?? [], value]);
  const volumes = new Map<string, { bytes: number; count: number }>();
  for (let turn = 0; turn <= repeats; turn++) {
    for (const what of ["reduce", "gather"] as const) {
      await everyone.barrier();
      const record = phases(), begun = recorder.since(0).next;
      const processor = processorSeconds(), started = performance.now();
      for (const synchronizer of synchronizers) {
        synchronizer.onSpan = record.onSpan;
        if (what === "gather") synchronizer.updated();
        await drive(synchronizer[what]());
      }
      await backend.finish();
      if (turn === 0) continue; // memory is touched for the first time
      sample(what, secondsSince(started));
      sample(`${what}: processor`, processorSeconds() - processor);
      sample(`${what}: collectives under way`, underWay(recorder, begun));
      volumes.set(`${what}: collectives under way`, {
        bytes: Math.round((world - 1) / world * bytes),
        count: zero.reduce((sum, { buckets, gathers }) => sum + (what === "reduce" ? buckets : gathers).length, 0),
      });
      for (const [phase, { seconds, bytes, count }] of record.all) {
        sample(`${what}: ${phase}`, seconds);
        volumes.set(`${what}: ${phase}`, { bytes, count });
      }
    }
    if (turn > 0) continue;
    const owners = new Map(all.map(({ name, begin, owner }) => [`${name} ${begin}`, owner]));
    const sums = own.every((part) =>
      starts(program.partRange("gradient", part), wordOf("f32", world * (world + 1) / 2))
    );
    const gathered = all.every((part) =>
      mesh.size("zero") === 1 ||
      starts(
        program.storedRange(part),
        wordOf(program.typeOf(part.name), owners.get(`${part.name} ${part.begin}`)! + 1),
      )
    );
    if (!sums || !gathered) {
      throw new Error("Cannot measure: gradients were not summed, or parameters not handed round");
    }
  }
  const { copy, sum } = floors();
  for (const [figure, values] of samples) {
    const { median, best } = spread(values), volume = volumes.get(figure);
    const rate = volume && volume.bytes > 0
      ? { bytes: volume.bytes, count: volume.count, gigabytes_per_second: round(volume.bytes / median / 1e9) }
      : {};
    print({ bench: "sync", figure, value: median, unit: "s", best, ranks: world, backend: backend.name, ...rate });
  }
  print({ bench: "sync", figure: "floor: copy", value: round(copy), unit: "GB/s", ranks: world });
  print({ bench: "sync", figure: "floor: sum", value: round(sum), unit: "GB/s", ranks: world });
  print({ bench: "sync", figure: "gradients", value: bytes, unit: "bytes", ranks: world, repeats });
  await everyone.barrier();
  await runtime.stop();
}

/** Starts the ranks as processes and reports what rank 0 measures. */
export async function benchSync(
  { configs, ranks, backend, repeats, report }: {
    /** The record for so many ranks. */
    configs: (world: number) => Promise<ResolvedConfig>;
    ranks: readonly number[];
    backend: BackendName;
    repeats: number;
    report: Report;
  },
): Promise<void> {
  for (const world of ranks) {
    const config = await configs(world), token = crypto.randomUUID();
    await using control = listenControl({ hostname, port: 0, token, onValue: () => {} });
    const meeting = openRendezvous({ hostname, token, world, fingerprint: version }), sockets = hostSockets(world);
    try {
      await benchRanks<Task>({
        verb: ["bench", "sync", "--child"],
        permissions: sockets.allow({ read: true, env: true, net: [hostname], sys: ["systemMemoryInfo", "statfs"] }),
        world,
        task: (rank) => ({ rank, world, meetingPort: meeting.port, config, backend, repeats }),
        env: (localRank) =>
          rankEnvironment({
            rank: localRank,
            localRank,
            world,
            attempt: 0,
            control: { hostname, port: control.port },
            token,
            address: hostname,
            sockets,
          }),
        report,
      });
    } finally {
      await meeting.close();
    }
  }
}
