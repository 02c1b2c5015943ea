/** What the `doctor` verb says of the adapter, as plain data. */
import {
  describe,
  limitsOf,
  messageOf,
  noAdapterAdvice,
  openAdapter,
  type Provider,
  requestAdapter,
} from "./provider.ts";

export type AdapterReport =
  | {
    readonly found: true;
    readonly provider: Provider;
    readonly description: string;
    /** Maker's PCI number or name, as the driver states it; may be empty. */
    readonly vendor: string;
    readonly architecture: string;
    /** A rasteriser in software rather than a GPU. */
    readonly software: boolean;
    /** 0 where kernels do without subgroups. */
    readonly subgroupSize: number;
    /** All that the adapter lists, and what it grants unlisted. */
    readonly features: readonly string[];
    readonly limits: Readonly<Record<string, number>>;
  }
  | {
    readonly found: false;
    readonly provider: Provider;
    readonly reason: string;
    /** What to install or type. */
    readonly advice: string;
  };

/** Looks for the provider's adapter and opens a device on it for a moment. Never rejects: the report has the reason. */
export async function probeAdapter(provider: Provider = "deno"): Promise<AdapterReport> {
  try {
    const adapter = await requestAdapter(provider);
    if (adapter === null) {
      const reason = "gpu" in navigator ? "no adapter was found" : "this runtime has no WebGPU";
      return { found: false, provider, reason, advice: noAdapterAdvice(provider) };
    }
    const { device, traits } = await openAdapter(adapter, provider);
    const report: AdapterReport = {
      found: true,
      provider,
      description: describe(adapter.info),
      vendor: adapter.info.vendor,
      architecture: adapter.info.architecture,
      software: traits.software,
      subgroupSize: traits.subgroupSize,
      features: [...new Set([...adapter.features, ...device.features] as string[])].sort(),
      limits: limitsOf(adapter.limits),
    };
    device.destroy();
    return report;
  } catch (error) {
    return { found: false, provider, reason: messageOf(error), advice: noAdapterAdvice(provider) };
  }
}
