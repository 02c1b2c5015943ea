/**
 * What devices and links do, as measured with Troupe's own kernels and connections: the numbers behind `troupe plan --world`.
 * A figure that was not measured is not in here.
 */
import type { DeviceTraits } from "../../kernels/kernel.ts";

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
  /** Between device and host memory: seconds for any transfer, and bytes a second. */
  readonly host: { readonly latency: number; readonly bandwidth: number };
}

const GB = 1e9, TB = 1e12, TFLOPS = 1e12, GiB = 2 ** 30, ms = 1e-3, us = 1e-6;

export const devices: Readonly<Record<string, DeviceModel>> = {
  h200: {
    description: "NVIDIA H200",
    memory: 139 * GiB,
    limits: { maxBufferSize: 4 * GiB, maxStorageBufferBindingSize: 2 * GiB - 4 },
    matmul: 43 * TFLOPS,
    attention: 20.5 * TFLOPS,
    // What products reach in a whole training step of a 124M model; large ones by themselves reach 236 and 211.
    units: {
      float16: { matmul: 138 * TFLOPS, attention: 62.9 * TFLOPS },
      bfloat16: { matmul: 110 * TFLOPS, attention: 20.5 * TFLOPS },
    },
    bandwidth: 4.26 * TB,
    dispatch: 2.7 * us,
    // 1 MiB comes back in 0.16 to 0.6 ms.
    host: { latency: 0.1 * ms, bandwidth: 5 * GB },
  },
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

/** Line rates less what Ethernet, IP and TCP take; `loopback` is the rate of a ring between processes of one machine. */
export const links: Readonly<Record<string, LinkModel>> = {
  loopback: { description: "one machine", bandwidth: 2.4 * GB, latency: 25 * us },
  "1GbE": { description: "1 Gbit/s Ethernet", bandwidth: 0.118 * GB, latency: 50 * us },
  "10GbE": { description: "10 Gbit/s Ethernet", bandwidth: 1.18 * GB, latency: 50 * us },
  "25GbE": { description: "25 Gbit/s Ethernet", bandwidth: 2.95 * GB, latency: 50 * us },
  "100GbE": { description: "100 Gbit/s Ethernet", bandwidth: 11.8 * GB, latency: 50 * us },
  "400Gb": { description: "400 Gbit/s network", bandwidth: 47 * GB, latency: 50 * us },
};
