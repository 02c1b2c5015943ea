/** Where WGSL compilers part. */
import type { DeviceTraits } from "../kernel.ts";

/** First line of a text that uses subgroups where there are any: Tint (Dawn) requires it, naga (Deno) refuses it. */
export function subgroupPrelude({ provider, subgroupSize }: DeviceTraits): string {
  return provider === "dawn" && subgroupSize > 0 ? "enable subgroups;\n" : "";
}
