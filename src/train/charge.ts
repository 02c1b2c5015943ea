/** What the instructions of a plan take on a device and over links, in seconds and in bytes on the wire. */
import type { Kernel } from "../../kernels/kernel.ts";
import type { ResolvedConfig } from "../config/mod.ts";
import type { CollectiveInstruction, Instruction, Segment } from "../graph/plan.ts";
import { beginnings, isWeightGather, type Prefetches } from "../graph/weight_gathers.ts";
import type { Mesh, Mode } from "../parallel/mesh.ts";
import { computesApart } from "../parallel/world.ts";
import { connectionBandwidth, type DeviceModel, type LinkModel, loopbackLatency } from "./hardware.ts";
import { RankClock } from "./rank_clock.ts";

/** What a layout would run on. */
export interface Machines {
  /** Ranks in all. */
  readonly world: number;
  readonly device: DeviceModel;
  /** Between machines; its rate is shared by the ranks of one. */
  readonly link: LinkModel;
  /** Devices of one machine. @default {8} */
  readonly perHost?: number;
  /** Ranks that share a device, neighbours by number. @default {1} */
  readonly perDevice?: number;
}

type Operator = CollectiveInstruction["operator"];

/**
 * Bytes that one of `size` ranks sends in a ring for a tensor of `bytes` in all (Patarasu and Yuan 2009, "Bandwidth
 * Optimal All-reduce Algorithms").
 */
export const wireBytes = (operator: Operator, size: number, bytes: number): number =>
  (operator === "all-reduce" ? 2 : 1) * bytes * (size - 1) / size;

/** Ranks of each machine. */
const ranksPerHost = ({ perHost = 8, perDevice = 1 }: Pick<Machines, "perHost" | "perDevice">): number =>
  perHost * perDevice;

export interface Charges {
  /** Multiplications and additions a second that matrix products reach with the record's types. */
  readonly matmulRate: number;
  /** Seconds on a device that this rank has to itself. @param load share of a grouped product's rows that are there */
  kernel(kernel: Kernel, load?: number): number;
  /** How many times longer device work takes beside the ranks that share the device. */
  readonly turns: number;
  /** The same of a step's first and last passes, beside which something travels: one rank's alone, where they take turns. */
  readonly turnsAtEnds: number;
  /** A read-back of so many bytes, and an upload. */
  read(bytes: number): number;
  upload(bytes: number): number;
  /** Over host memory that is used again. */
  copy(bytes: number): number;
  link(mode: Mode): LinkModel;
  /**
   * Seconds of one collective between communicators.
   *
   * @param counts bytes of each rank's part, where they are not even: a ring takes as long as its largest part
   */
  collective(operator: Operator, mode: Mode, whole: number, counts?: readonly number[]): number;
  /** One run of a segment. */
  segment(segment: Segment, options?: SegmentOptions): SegmentCharge;
}

export interface SegmentOptions {
  readonly prefetch?: Prefetches;
  /** Rows that come to a rank's experts where that is data: an even share, or as many as there is room for. @default {"even"} */
  readonly load?: "even" | "most";
}

export interface SegmentCharge {
  /** From its start until thread and device are done with it. */
  readonly seconds: number;
  /** Of them, on a device that this rank has to itself. */
  readonly device: number;
  /** Bytes sent, by axis. */
  readonly sent: ReadonlyMap<Mode, number>;
  /** Bytes of weights that the host keeps a copy of, read back once a step, by their places. */
  readonly mirrored: ReadonlyMap<string, number>;
}

/** A piece of a segment as the program cuts it: device work that goes in one list, or a collective. */
type Piece = { readonly seconds: number } | { readonly instruction: CollectiveInstruction };

/** @param mesh the rank's place, which decides what its groups talk over */
export function chargesOf(
  config: ResolvedConfig,
  machines: Machines,
  mesh: Mesh,
  /** Ranks of the same stage that share this rank's device: they compute at the same time. */
  sharing = 1,
): Charges {
  const { device: { dispatch, bandwidth, ...device } } = machines, { host } = device, { data, model, runtime } = config;
  const rates = model.dtype !== "float32" && runtime.webgpu === "dawn" ? device.units[model.dtype] : device;
  const matmulRate = rates.matmul, shared = (machines.perDevice ?? 1) > 1;
  const oneByOne = shared && runtime.gpu_turns && computesApart(mesh);
  const turns = sharing * (shared && !oneByOne ? 1 + device.switching : 1);
  /** Attention states its work for one segment as long as the micro-batch. */
  const segmentShare = Math.min(1, data.seq_len / data.packed_length);

  const kernel = ({ name, cost }: Kernel, load = 1): number => {
    const attends = name.startsWith("attention");
    const work = attends ? cost.flops * segmentShare / rates.attention : load * cost.flops / matmulRate;
    return dispatch + Math.max(work, cost.bytes / bandwidth);
  };
  const read = (bytes: number) => bytes === 0 ? 0 : host.latency + bytes / host.readBack;
  const upload = (bytes: number) => bytes / host.upload, copy = (bytes: number) => bytes / host.copy;
  const onHost = ranksPerHost(machines), hostOf = (rank: number) => Math.floor(rank / onHost);
  const known = new Map<Mode, LinkModel>();
  const link = (mode: Mode): LinkModel => {
    const found = known.get(mode);
    if (found) return found;
    const { ranks } = mesh.group(mode), own = hostOf(mesh.rank);
    let slowest: LinkModel = { description: "one machine", bandwidth: host.hop, latency: loopbackLatency };
    if (ranks.some((rank) => hostOf(rank) !== own)) {
      // Of every group that leaves this machine one hop of the ring goes out, at the same time as those of the others.
      const size = ranks.length, stride = ranks[1]! - ranks[0]!;
      const next = (rank: number) =>
        Math.floor(rank / stride) % size === size - 1 ? rank - (size - 1) * stride : rank + stride;
      const here = Array.from({ length: onHost }, (_, i) => own * onHost + i).filter((rank) => rank < mesh.world);
      const leaving = here.filter((rank) => hostOf(next(rank)) !== own).length;
      const bandwidth = Math.min(connectionBandwidth, host.hop, machines.link.bandwidth / Math.max(1, leaving));
      slowest = { ...machines.link, bandwidth };
    }
    known.set(mode, slowest);
    return slowest;
  };
  const collective: Charges["collective"] = (operator, mode, whole, counts) => {
    const size = mesh.size(mode), { latency, bandwidth } = link(mode);
    const rounds = (operator === "all-reduce" ? 2 : 1) * (size - 1);
    if (!counts) return rounds * latency + wireBytes(operator, size, whole) / bandwidth;
    // Every hop carries all parts but one, piece by piece, so that all hops are busy at once.
    return rounds * latency + (whole - Math.min(...counts)) / bandwidth;
  };

  /** Bytes of a collective's whole tensor that travel, and those that come to this rank. */
  const movedBy = ({ operator, source, target }: CollectiveInstruction, load: SegmentOptions["load"]) => {
    // As many rows come to a rank's experts as its tokens send, if experts are chosen evenly; there is room for more.
    const even = operator === "exchange" && load === "even";
    const whole = even ? Math.min(source.bytes, target.bytes) : Math.max(source.bytes, target.bytes);
    return { whole, into: even ? whole : target.bytes };
  };
  /** Expected share of the rows for which an expert's products have room. */
  const loadsOf = (instructions: readonly Instruction[]) =>
    new Map(instructions.flatMap((instruction) => {
      if (instruction.kind !== "collective" || instruction.operator !== "exchange") return [];
      const { source, target, exchange } = instruction,
        [fewer, more] = [source.bytes, target.bytes].sort((a, b) => a - b);
      return [[exchange!.room, fewer! / more!] as const];
    }));

  return {
    matmulRate,
    turns,
    turnsAtEnds: oneByOne ? 1 : turns,
    kernel,
    read,
    upload,
    copy,
    link,
    collective,
    segment({ instructions }, { prefetch = {}, load = "even" } = {}) {
      const sent = new Map<Mode, number>(),
        loads = load === "even" ? loadsOf(instructions) : new Map(),
        pieces: Piece[] = [];
      let queued = 0, device = 0;
      const close = () => {
        if (queued > 0) pieces.push({ seconds: queued });
        device += queued;
        queued = 0;
      };
      for (const instruction of instructions) {
        if (instruction.kind === "dispatch") {
          const { kernel: each } = instruction;
          const rows = each.name.startsWith("grouped") ? Number(each.shape!.split(" ")[0]) : 0;
          queued += kernel(each, loads.get(rows));
        } else if (instruction.kind === "copy") {
          queued += dispatch + 2 * instruction.source.bytes / bandwidth;
        } else {
          close();
          pieces.push({ instruction });
        }
      }
      close();

      const gathers = pieces.flatMap((piece, index) =>
        "instruction" in piece && isWeightGather(piece)
          ? [{ piece: index, layer: piece.instruction.layer, axis: piece.instruction.axis }]
          : []
      );
      const begun = beginnings(gathers, prefetch), arrivals = new Map<number, number>(), clock = new RankClock();
      const mirrored = new Map<string, number>();
      for (const [index, piece] of pieces.entries()) {
        for (const ahead of begun.get(index) ?? []) {
          const { instruction } = pieces[ahead] as Extract<Piece, { instruction: unknown }>;
          const { axis, operator, source, target } = instruction, mode = axis as Mode;
          clock.work(copy(source.bytes));
          arrivals.set(ahead, clock.collective(collective(operator, mode, target.bytes)));
          mirrored.set(`${source.space} ${source.slot} ${source.offset}`, source.bytes);
        }
        if ("seconds" in piece) {
          clock.queue(turns * piece.seconds);
          continue;
        }
        const { instruction } = piece, { operator, source } = instruction, mode = instruction.axis as Mode;
        const { whole, into } = movedBy(instruction, load), wire = wireBytes(operator, mesh.size(mode), whole);
        sent.set(mode, (sent.get(mode) ?? 0) + wire);
        const arrival = arrivals.get(index);
        if (arrival === undefined) {
          clock.readBack(read(Math.min(whole, source.bytes)));
          clock.work(copy(Math.min(whole, source.bytes)));
          clock.wait(clock.collective(collective(operator, mode, whole)));
        } else clock.wait(arrival);
        clock.work(upload(into));
      }
      return { seconds: clock.now, device, sent, mirrored };
    },
  };
}
