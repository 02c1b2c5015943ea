/**
 * Counts what a provider's WebGPU makes for JavaScript: objects, of which Deno keeps 48 bytes each for ever where they come
 * from Dawn, and polls, 32 bytes each.
 */
import { openDevice, type Provider } from "../../src/backend/webgpu/provider.ts";

export const bytesOfObject = 48, bytesOfPoll = 32;

/** Counts from now on, over the whole thread. */
export async function countObjects(provider: Provider): Promise<{ objects: number; polls: number }> {
  const counts = { objects: 0, polls: 0 };
  const { device } = await openDevice(provider);
  const encoder = device.createCommandEncoder();
  for (const made of [device, encoder]) {
    const prototype = Object.getPrototypeOf(made) as Record<string, unknown>;
    for (const name of Object.getOwnPropertyNames(prototype)) {
      if (!/^(create|begin|finish)/.test(name)) continue;
      const method = prototype[name] as (...given: unknown[]) => unknown;
      prototype[name] = function (...given: unknown[]) {
        counts.objects++;
        return method.apply(this, given);
      };
    }
  }
  device.destroy();
  // Dawn asks for a poll by the global function.
  const immediate = globalThis.setImmediate;
  const counting = (...given: Parameters<typeof setImmediate>) => {
    counts.polls++;
    return immediate(...given);
  };
  globalThis.setImmediate = counting as typeof setImmediate;
  return counts;
}
