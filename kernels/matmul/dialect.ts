/** Where WGSL compilers part. */
import type { DeviceTraits } from "../kernel.ts";

/** First line of a text that uses subgroups: Tint (Dawn) requires it, naga (Deno) refuses it. */
export function subgroupPrelude({ provider }: DeviceTraits): string {
  return provider === "dawn" ? "enable subgroups;\n" : "";
}
