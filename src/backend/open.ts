/** Opens a backend by its name in the run record. */
import type { Backend } from "./backend.ts";
import { openCpuBackend } from "./cpu/backend.ts";
import { openNullBackend } from "./null/backend.ts";
import { openWebGpuBackend } from "./webgpu/backend.ts";
import { defaultProvider, type DeviceOptions, type Provider } from "./webgpu/provider.ts";

export const backendNames = ["webgpu", "cpu", "null"] as const;
export type BackendName = typeof backendNames[number];

export interface OpenOptions extends DeviceOptions {
  /** Who provides WebGPU, read by the webgpu backend: `deno` stands for the default, which `TROUPE_WEBGPU` may name. */
  readonly provider?: Provider;
}

/** What a run record asks of the device. */
export const deviceOptions = (
  { webgpu, bounds_checks }: { readonly webgpu: Provider; readonly bounds_checks: boolean },
): OpenOptions => ({ provider: webgpu, boundsChecks: bounds_checks });

/**
 * Opens the device. Dispose of it when done: `using backend = await openBackend("cpu")`.
 *
 * @throws {Error} when WebGPU finds no adapter, saying what to install.
 * @throws {RangeError} on an unknown name.
 *
 * @example
 * ```ts
 * import { openBackend } from "./open.ts";
 * using backend = await openBackend("cpu");
 * const buffer = backend.allocate(16, "numbers");
 * backend.upload({ buffer, offset: 0, bytes: 16 }, new Float32Array([1, 2, 3, 4]));
 * const [bytes] = backend.read([{ buffer, offset: 8, bytes: 4 }]).take();
 * console.assert(new Float32Array(bytes.buffer)[0] === 3);
 * ```
 */
export async function openBackend(
  name: BackendName,
  { provider, ...options }: OpenOptions = {},
): Promise<Backend> {
  switch (name) {
    case "webgpu":
      return await openWebGpuBackend(provider === "dawn" ? "dawn" : defaultProvider(), options);
    case "cpu":
      return openCpuBackend();
    case "null":
      return openNullBackend();
    default:
      throw new RangeError(`Cannot open backend: expected one of ${backendNames.join(", ")}, got ${String(name)}`);
  }
}
