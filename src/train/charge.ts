/** What the instructions of a plan take on a device and over links, in seconds and in bytes on the wire. */
import type { Kernel } from "../../kernels/kernel.ts";
import type { ResolvedConfig } from "../config/mod.ts";
import type { CollectiveInstruction, Segment } from "../graph/plan.ts";
import type { Mesh, Mode } from "../parallel/mesh.ts";
import { connectionBandwidth, type DeviceModel, type LinkModel, links } from "./hardware.ts";

/** What a layout would run on. */
export interface Machines {
  readonly world: number;
  readonly device: DeviceModel;
  /** Between machines; its rate is shared by the ranks of one. */
  readonly link: LinkModel;
  /** Ranks on one machine. @default {8} */
  readonly perHost?: number;
}

type Operator = CollectiveInstruction["operator"];

/**
 * Bytes that one of `size` ranks sends in a ring for a tensor of `bytes` in all (Patarasu and Yuan 2009, "Bandwidth
 * Optimal All-reduce Algorithms").
 */
export const wireBytes = (operator: Operator, size: number, bytes: number): number =>
  (operator === "all-reduce" ? 2 : 1) * bytes * (size - 1) / size;

/** Seconds and bytes of one exchange. */
export interface Charge {
  readonly seconds: number;
  readonly sent: number;
}

export interface Charges {
  /** Multiplications and additions a second that matrix products reach with the record's types. */
  readonly matmulRate: number;
  kernel(kernel: Kernel): number;
  /** Between device and host memory. */
  host(bytes: number): number;
  link(mode: Mode): LinkModel;
  /** `bytes`: of the whole tensor; `from` and `into` what is read back and uploaded. */
  collective(operator: Operator, mode: Mode, bytes: { whole: number; from: number; into: number }): Charge;
  /** One run of a segment; `sent` by axis. */
  segment(segment: Segment): { readonly seconds: number; readonly sent: ReadonlyMap<Mode, number> };
}

/** @param mesh the rank's place, which decides what its groups talk over */
export function chargesOf(config: ResolvedConfig, machines: Machines, mesh: Mesh): Charges {
  const { device, perHost = 8, world } = machines, { data, model, runtime } = config;
  const rates = model.dtype !== "float32" && runtime.webgpu === "dawn" ? device.units[model.dtype] : device;
  const matmulRate = rates.matmul;
  /** Attention states its work for one segment as long as the micro-batch. */
  const segmentShare = Math.min(1, data.seq_len / data.packed_length);

  const kernel = ({ name, cost }: Kernel): number => {
    const attends = name.startsWith("attention");
    const work = attends ? cost.flops * segmentShare / rates.attention : cost.flops / matmulRate;
    return device.dispatch + Math.max(work, cost.bytes / device.bandwidth);
  };
  const host = (bytes: number) => bytes === 0 ? 0 : device.host.latency + bytes / device.host.bandwidth;
  const link = (mode: Mode): LinkModel => {
    const hosts = new Set(mesh.group(mode).ranks.map((rank) => Math.floor(rank / perHost)));
    if (hosts.size === 1) return links.loopback!;
    // All ranks of a machine use its connection at the same time.
    const share = machines.link.bandwidth / Math.min(perHost, world);
    return { ...machines.link, bandwidth: Math.min(connectionBandwidth, share) };
  };
  const collective: Charges["collective"] = (operator, mode, { whole, from, into }) => {
    const size = mesh.size(mode), sent = wireBytes(operator, size, whole), { latency, bandwidth } = link(mode);
    const rounds = (operator === "all-reduce" ? 2 : 1) * (size - 1);
    return { seconds: host(from) + rounds * latency + sent / bandwidth + host(into), sent };
  };
  return {
    matmulRate,
    kernel,
    host,
    link,
    collective,
    segment({ instructions }) {
      const sent = new Map<Mode, number>();
      let seconds = 0;
      for (const instruction of instructions) {
        if (instruction.kind === "dispatch") seconds += kernel(instruction.kernel);
        else if (instruction.kind === "copy") {
          seconds += device.dispatch + 2 * instruction.source.bytes / device.bandwidth;
        } else {
          const { operator, source, target } = instruction, axis = instruction.axis as Mode;
          // The host knows a rank's own weights: gathering them reads nothing back.
          const known = operator === "all-gather" && (source.space === "parameter" || source.space === "model");
          const from = known ? 0 : source.bytes, into = target.bytes;
          const bytes = { whole: Math.max(source.bytes, target.bytes), from, into };
          const charge = collective(operator, axis, bytes);
          seconds += charge.seconds;
          sent.set(axis, (sent.get(axis) ?? 0) + charge.sent);
        }
      }
      return { seconds, sent };
    },
  };
}
