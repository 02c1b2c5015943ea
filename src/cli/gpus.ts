/**
 * The cards of this machine by their places on the bus, and what tells each rank its own. WebGPU shows a program one adapter;
 * Mesa's device-select layer, which the Vulkan loader puts in front of any maker's driver, decides which.
 */
import { join } from "node:path";

/** What else has a display class is part of a processor, or drawn by a virtual machine. */
const nvidia = "0x10de", amd = "0x1002";

/**
 * Places of the GPUs on the PCI bus, such as `0000:03:00.0`, in order. None where the system does not tell.
 *
 * @param bus where Linux lists what is on it
 * @param visible where NVIDIA's driver lists the cards that this container may use; all, where it lists none
 */
export function listGpus(bus = "/sys/bus/pci/devices", visible = "/proc/driver/nvidia/gpus"): string[] {
  const read = (place: string, file: string): string => {
    try {
      return Deno.readTextFileSync(join(bus, place, file)).trim();
    } catch {
      return ""; // a card that goes, or is not ours to see
    }
  };
  const usable = list(visible);
  return list(bus).filter((place) => {
    if (!read(place, "class").startsWith("0x03")) return false;
    const vendor = read(place, "vendor");
    return vendor === amd || (vendor === nvidia && (usable.length === 0 || usable.includes(place)));
  });
}

function list(folder: string): string[] {
  try {
    return [...Deno.readDirSync(folder)].map(({ name }) => name.toLowerCase()).sort();
  } catch {
    return [];
  }
}

/**
 * The variables that give each rank of a host a GPU of its own.
 *
 * @example
 * ```ts
 * import { variablesOfRanks } from "./gpus.ts";
 * const [first, second] = variablesOfRanks(["0000:01:00.0", "0000:03:00.0"]);
 * console.assert(second === "TROUPE_RANK_ENV_1=DRI_PRIME=pci-0000_03_00_0");
 * ```
 */
export const variablesOfRanks = (gpus: readonly string[]): string[] =>
  gpus.map((place, rank) => `TROUPE_RANK_ENV_${rank}=DRI_PRIME=pci-${place.replaceAll(/[:.]/g, "_")}`);
