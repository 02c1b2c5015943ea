/**
 * The one seam towards whoever implements WebGPU: finds the adapter, asks for everything it has, and states as plain
 * traits what kernels may rely on. Everything above uses the standard API alone.
 */
import type { DeviceTraits } from "../../../kernels/kernel.ts";
import { keepDriver, loadDawn } from "./dawn.ts";

/** `deno`: built in. `dawn`: the npm package `webgpu`, which the user adds (`dawn.ts`). */
const providers = ["deno", "dawn"] as const;
export type Provider = typeof providers[number];

/** Who provides WebGPU where nothing says so: the environment's `TROUPE_WEBGPU`, which the task `dawn` sets, or Deno. */
export function defaultProvider(): Provider {
  const variable = "TROUPE_WEBGPU";
  if (Deno.permissions.querySync({ name: "env", variable }).state !== "granted") return "deno";
  const named = Deno.env.get(variable) || "deno";
  const known = providers.find((provider) => provider === named);
  if (known === undefined) throw new RangeError(`Cannot use ${variable}=${named}: expected ${providers.join(" or ")}`);
  return known;
}

export interface DeviceOptions {
  /**
   * The device holds every index of a kernel within its array, whatever the text says. Dawn can leave that out, which makes
   * products some 5 % faster; Deno's own WebGPU cannot. Troupe's kernels need none (`kernels/audit.ts`); those of others
   * may. @default {true}
   */
  readonly boundsChecks?: boolean;
}

export interface OpenDevice {
  readonly device: GPUDevice;
  readonly traits: DeviceTraits;
}

const matrixFeature = "chromium-experimental-subgroup-matrix";
const wantedFeatures = ["subgroups", "shader-f16", "timestamp-query", matrixFeature] as const;

/** What to type when there is no adapter. */
export const noAdapterAdvice = (provider: Provider): string =>
  provider === "dawn"
    ? "Dawn takes a GPU with its maker's Vulkan driver, and little of what computes in software; without the word dawn " +
      "(runtime.webgpu: deno) Deno's own WebGPU may work, and `./troupe doctor` tells what is here; " +
      "`--backend cpu` works, slowly"
    : "install a Vulkan driver: the GPU maker's one, or for software rendering on Debian and " +
      "Ubuntu `apt-get install --yes mesa-vulkan-drivers`; without one, `--backend cpu` works, slowly";

/** The adapter of a provider, or `null` when it has none. */
export async function requestAdapter(
  provider: Provider,
  { boundsChecks = true }: DeviceOptions = {},
): Promise<GPUAdapter | null> {
  // Deno's is absent in a runtime built or configured without WebGPU.
  const gpu = provider === "dawn" ? await loadDawn({ boundsChecks }) : (navigator as { gpu?: GPU }).gpu;
  return await withRuntimeFolder(() => gpu?.requestAdapter({ powerPreference: "high-performance" })) ?? null;
}

/**
 * Mesa's layer that chooses among devices asks a Wayland server, whenever they are listed (twice an adapter), and its library
 * writes an error to the terminal where `XDG_RUNTIME_DIR` is unset, as in many containers. So it is set meanwhile.
 */
async function withRuntimeFolder<Result>(body: () => Promise<Result> | undefined): Promise<Result | undefined> {
  const variable = "XDG_RUNTIME_DIR";
  const may = Deno.permissions.querySync({ name: "env", variable }).state === "granted";
  if (!may || Deno.env.has(variable)) return await body();
  Deno.env.set(variable, "/tmp");
  try {
    return await body();
  } finally {
    Deno.env.delete(variable);
  }
}

/**
 * Opens the provider's device with the adapter's real limits and every wanted feature that it grants.
 *
 * @throws {Error} when there is no adapter, saying what to install.
 */
export async function openDevice(provider: Provider, options: DeviceOptions = {}): Promise<OpenDevice> {
  const adapter = await requestAdapter(provider, options);
  if (adapter === null) {
    // Emptied by who started this process, see `selfCommand`.
    const withheld = Deno.permissions.querySync({ name: "env", variable: "LD_LIBRARY_PATH" }).state === "granted" &&
      Deno.env.get("LD_LIBRARY_PATH") === "";
    const libraries =
      "; LD_LIBRARY_PATH is not handed to child processes: where the driver needs it, its folders belong " +
      "into /etc/ld.so.conf.d, and then `ldconfig`";
    throw new Error(
      `Cannot open the webgpu backend as no adapter was found: ${noAdapterAdvice(provider)}${
        withheld ? libraries : ""
      }`,
    );
  }
  const { device, traits } = await openAdapter(adapter, provider);
  return { device, traits };
}

/** Opens a device on an adapter. Also used to report on it, so that the report is of what kernels would see. */
export async function openAdapter(adapter: GPUAdapter, provider: Provider): Promise<OpenDevice> {
  const requiredLimits = limitsOf(adapter.limits);
  const device = await openWithFeatures(adapter, requiredLimits);
  if (provider === "dawn") keepDriver();
  return { device, traits: traitsOf(adapter, device, provider) };
}

/**
 * Asks for features by name rather than by the adapter's list: Deno grants `subgroups` without listing it. A request
 * that is refused leaves the adapter usable, so the list shrinks until it is granted.
 */
async function openWithFeatures(adapter: GPUAdapter, requiredLimits: Record<string, number>): Promise<GPUDevice> {
  const listed = wantedFeatures.filter((feature) =>
    feature === "subgroups" || (adapter.features as { has(name: string): boolean }).has(feature)
  );
  const attempts = [listed, listed.filter((feature) => feature !== "subgroups" && feature !== matrixFeature), []];
  let refusal: unknown;
  for (const requiredFeatures of attempts) {
    try {
      return await adapter.requestDevice({
        label: "troupe",
        requiredFeatures: requiredFeatures as GPUFeatureName[],
        requiredLimits,
      });
    } catch (error) {
      refusal = error;
    }
  }
  throw new Error(`Cannot open a device on adapter "${describe(adapter.info)}": ${messageOf(refusal)}`, {
    cause: refusal,
  });
}

/** Limits as plain data. They are getters on a prototype, so spreading them gives nothing. */
export function limitsOf(limits: GPUSupportedLimits): Record<string, number> {
  const plain: Record<string, number> = {};
  for (const name of Object.getOwnPropertyNames(Object.getPrototypeOf(limits))) {
    const value = (limits as unknown as Record<string, unknown>)[name];
    if (typeof value === "number") plain[name] = value;
  }
  return plain;
}

/** Adapter name for people. */
export function describe(info: GPUAdapterInfo): string {
  return info.description || [info.vendor, info.architecture, info.device].filter(Boolean).join(" ") || "unnamed";
}

function traitsOf(adapter: GPUAdapter, device: GPUDevice, provider: Provider): DeviceTraits {
  const { info } = adapter;
  const { limits } = device;
  const features: { has(name: string): boolean } = device.features;
  // Kernels are rendered for one subgroup size. Where the driver picks it per pipeline (Intel), they do without.
  const fixedSize = info.subgroupMinSize === info.subgroupMaxSize ? info.subgroupMinSize : 0;
  const subgroups = features.has("subgroups") && fixedSize > 0;
  return {
    adapter: [provider, info.vendor, info.architecture, info.device, info.description].join(" | "),
    provider,
    description: describe(info),
    software: info.isFallbackAdapter || /llvmpipe|lavapipe|swiftshader/i.test(describe(info) + info.architecture),
    subgroupSize: subgroups ? fixedSize : 0,
    imageReads: /llvmpipe/i.test(describe(info)),
    features: {
      subgroups,
      shaderF16: features.has("shader-f16"),
      timestampQuery: features.has("timestamp-query"),
      matrixUnits: features.has(matrixFeature) && fixedSize === 32 && offersMatrices(info),
    },
    limits: {
      maxBufferSize: limits.maxBufferSize,
      maxStorageBufferBindingSize: limits.maxStorageBufferBindingSize,
      maxStorageBuffersPerShaderStage: limits.maxStorageBuffersPerShaderStage,
      maxComputeWorkgroupsPerDimension: limits.maxComputeWorkgroupsPerDimension,
      maxComputeInvocationsPerWorkgroup: limits.maxComputeInvocationsPerWorkgroup,
      maxComputeWorkgroupStorageSize: limits.maxComputeWorkgroupStorageSize,
      minStorageBufferOffsetAlignment: limits.minStorageBufferOffsetAlignment,
    },
  };
}

/** Whether subgroups multiply matrices of 16 x 16 `f16` with sums in `f32`. */
function offersMatrices(info: GPUAdapterInfo): boolean {
  const { subgroupMatrixConfigs = [] } = info as { subgroupMatrixConfigs?: Iterable<Record<string, unknown>> };
  return [...subgroupMatrixConfigs].some(({ componentType, resultComponentType, M, N, K }) =>
    componentType === "f16" && resultComponentType === "f32" && M === 16 && N === 16 && K === 16
  );
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
