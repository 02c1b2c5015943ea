/**
 * What devices, their machines and links do: the numbers behind `troupe plan --world`, each device with where its numbers
 * come from. `troupe bench device` measures a machine and prints a file that `--device` takes (`device_file.ts`).
 */
import type { DeviceTraits } from "../../kernels/kernel.ts";

/** How bytes get from one rank's device to another's within one machine: each column is one thing that the host does. */
export interface HostModel {
  /** Seconds that any read-back takes. */
  readonly latency: number;
  /** Bytes a second from device memory into an array: off the device, mapped, copied out. */
  readonly readBack: number;
  /** Bytes a second from one array to another that is used again and again. */
  readonly copy: number;
  /** Bytes a second from an array to device memory. */
  readonly upload: number;
  /** Bytes a second that one hop between two processes of the machine carries, framed, checked and summed. */
  readonly hop: number;
}

export interface DeviceModel {
  readonly description: string;
  /** Bytes that a run may take. */
  readonly memory: number;
  readonly limits: Pick<DeviceTraits["limits"], "maxBufferSize" | "maxStorageBufferBindingSize">;
  /** Multiplications and additions a second in matrix products on `float32`. */
  readonly matmul: number;
  readonly attention: number;
  /** The same with half-precision operands on matrix units, which only the provider `dawn` shows. */
  readonly units: Readonly<Record<"float16" | "bfloat16", { readonly matmul: number; readonly attention: number }>>;
  /** Bytes a second, read and written, of a kernel that only moves them. */
  readonly bandwidth: number;
  /** Seconds that a dispatch takes whatever it does. */
  readonly dispatch: number;
  /** How much longer work takes where processes take turns on the device, beside what the others do: 0.1 for a tenth. */
  readonly switching: number;
  readonly host: HostModel;
  /** Where these numbers come from, for people. */
  readonly source: string;
}

const GB = 1e9, TB = 1e12, TFLOPS = 1e12, GiB = 2 ** 30, ms = 1e-3, us = 1e-6;

const h200: DeviceModel = {
  description: "NVIDIA H200",
  memory: 139 * GiB,
  limits: { maxBufferSize: 4 * GiB, maxStorageBufferBindingSize: 2 * GiB - 4 },
  matmul: 43 * TFLOPS,
  attention: 20.5 * TFLOPS,
  // What products reach in a whole training step of a 124M model; large ones by themselves reach 278 and 214.
  units: {
    float16: { matmul: 160 * TFLOPS, attention: 70 * TFLOPS },
    bfloat16: { matmul: 120 * TFLOPS, attention: 65 * TFLOPS },
  },
  bandwidth: 4.26 * TB,
  dispatch: 2 * us,
  // By `troupe bench device`, which moves bytes and nothing else: no run of several ranks had a part in these.
  switching: 0.108,
  host: { latency: 0.07 * ms, readBack: 2.9 * GB, copy: 6.2 * GB, upload: 7.3 * GB, hop: 1.14 * GB },
  source: "measured",
};

/** What NVIDIA publishes of the H200 (SXM): dense `float32` on vector units, dense half precision on matrix units, memory. */
const h200Peaks = { float32: 67 * TFLOPS, half: 989 * TFLOPS, bandwidth: 4.8 * TB };

/**
 * A device of which nothing was measured: the peaks that its maker publishes, times the shares of theirs that an H200
 * reached. Hosts are taken to be like the H200's.
 */
function published(
  { float32, half, bandwidth, ...device }: Pick<DeviceModel, "description" | "memory"> & typeof h200Peaks,
): DeviceModel {
  const vectors = float32 / h200Peaks.float32, matrices = half / h200Peaks.half;
  const { float16, bfloat16 } = h200.units;
  const scaled = (rates: typeof float16, by: number) => ({
    matmul: by * rates.matmul,
    attention: by * rates.attention,
  });
  return {
    ...h200,
    ...device,
    ...scaled(h200, vectors),
    units: {
      float16: scaled(float16, matrices),
      bfloat16: scaled(bfloat16, matrices),
    },
    bandwidth: bandwidth / h200Peaks.bandwidth * h200.bandwidth,
    source: "not measured: its maker's peaks, times the shares of theirs that an H200 reached, and the H200's host",
  };
}

export const devices: Readonly<Record<string, DeviceModel>> = {
  h200,
  // NVIDIA's data sheets; half precision without sparsity, on the RTX 4090 with sums in `float32`.
  h100: published({
    description: "NVIDIA H100 SXM",
    memory: 79 * GiB,
    float32: 67 * TFLOPS,
    half: 989 * TFLOPS,
    bandwidth: 3.35 * TB,
  }),
  a100: published({
    description: "NVIDIA A100 SXM 80GB",
    memory: 79 * GiB,
    float32: 19.5 * TFLOPS,
    half: 312 * TFLOPS,
    bandwidth: 2.039 * TB,
  }),
  l40s: published({
    description: "NVIDIA L40S",
    memory: 44 * GiB,
    float32: 91.6 * TFLOPS,
    half: 362 * TFLOPS,
    bandwidth: 0.864 * TB,
  }),
  l4: published({
    description: "NVIDIA L4",
    memory: 22 * GiB,
    float32: 30.3 * TFLOPS,
    half: 121 * TFLOPS,
    bandwidth: 0.3 * TB,
  }),
  rtx4090: published({
    description: "NVIDIA GeForce RTX 4090",
    memory: 23 * GiB,
    float32: 82.6 * TFLOPS,
    half: 165 * TFLOPS,
    bandwidth: 1.008 * TB,
  }),
};

export interface LinkModel {
  readonly description: string;
  /** Bytes a second in each direction, of one machine's connection to the others. */
  readonly bandwidth: number;
  /** Seconds from one end to the other. */
  readonly latency: number;
}

/** What one connection carries at most, whatever the network: how fast Deno moves bytes to and from a socket. */
export const connectionBandwidth = 3.6 * GB;

/** Seconds from one process to another of the same machine. */
export const loopbackLatency = 25 * us;

/** Line rates less what Ethernet, IP and TCP take; `loopback`: everything is on one machine, at its device's `host.hop`. */
export const links: Readonly<Record<string, LinkModel>> = {
  loopback: { description: "one machine", bandwidth: Infinity, latency: loopbackLatency },
  "1GbE": { description: "1 Gbit/s Ethernet", bandwidth: 0.118 * GB, latency: 50 * us },
  "10GbE": { description: "10 Gbit/s Ethernet", bandwidth: 1.18 * GB, latency: 50 * us },
  "25GbE": { description: "25 Gbit/s Ethernet", bandwidth: 2.95 * GB, latency: 50 * us },
  "100GbE": { description: "100 Gbit/s Ethernet", bandwidth: 11.8 * GB, latency: 50 * us },
  "400Gb": { description: "400 Gbit/s network", bandwidth: 47 * GB, latency: 50 * us },
};
