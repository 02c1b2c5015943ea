/**
 * Figures of one's own device, in a file: what `troupe bench device` prints and `troupe plan --device FILE` reads. YAML or
 * JSON, in plain units: bytes, seconds, operations a second.
 */
import { parse } from "@std/yaml";
import { z } from "zod";
import { parseBytes } from "../config/mod.ts";
import type { DeviceModel } from "./hardware.ts";

const rate = z.number().positive().finite();
const seconds = z.number().nonnegative().finite();
const bytes = z.unknown().transform((given, context): number => {
  const value = typeof given === "string" ? parseBytes(given) : given;
  if (typeof value === "number" && Number.isSafeInteger(value) && value > 0) return value;
  context.addIssue({ code: "custom", message: `${JSON.stringify(given)} is no amount of memory; 80GiB would work` });
  return z.NEVER;
});
const products = z.strictObject({ matmul: rate, attention: rate });

const deviceFile = z.strictObject({
  description: z.string().min(1).max(200),
  memory: bytes,
  limits: z.strictObject({ maxBufferSize: bytes, maxStorageBufferBindingSize: bytes }),
  matmul: rate,
  attention: rate,
  units: z.strictObject({ float16: products, bfloat16: products }).optional(),
  bandwidth: rate,
  dispatch: seconds,
  switching: seconds.max(10).default(0),
  host: z.strictObject({ latency: seconds, readBack: rate, copy: rate, upload: rate, hop: rate }),
  source: z.string().max(1000).default("a file"),
});

/** Whether a device is named by a file, not by a name of the table. */
export const isDeviceFile = (name: string): boolean => /\.(json|ya?ml)$/i.test(name);

/** Largest file that is read. */
const mostBytes = 1 << 20;

/**
 * @throws {RangeError} for a file that says something else than a device's figures, with all that is wrong
 *
 * @example
 * ```ts
 * import { parseDevice } from "./device_file.ts";
 * const host = { latency: 1e-4, readBack: 1e9, copy: 1e10, upload: 1e9, hop: 1e9 };
 * const limits = { maxBufferSize: "1GiB", maxStorageBufferBindingSize: "1GiB" };
 * const rates = { matmul: 1e13, attention: 5e12, bandwidth: 5e11, dispatch: 3e-6 };
 * const device = parseDevice(JSON.stringify({ description: "mine", memory: "24GiB", limits, ...rates, host }), "mine.json");
 * console.assert(device.memory === 24 * 2 ** 30 && device.units.float16.matmul === 1e13);
 * ```
 */
export function parseDevice(text: string, from: string): DeviceModel {
  let content: unknown;
  try {
    content = parse(text);
  } catch (error) {
    throw new RangeError(`Cannot read ${from}: ${(error as Error).message}`, { cause: error });
  }
  const { success, data, error } = deviceFile.safeParse(content);
  if (!success) {
    const problems = error.issues.map(({ path, message }) => `  ${path.join(".") || "the file"}: ${message}`);
    throw new RangeError(
      `Cannot use ${from} as a device:\n${problems.join("\n")}\nWhat troupe bench device prints would work`,
    );
  }
  const { matmul, attention } = data, plain = { matmul, attention };
  return { ...data, units: data.units ?? { float16: plain, bfloat16: plain } };
}

/** @throws {RangeError} for a file that is not there, too large, or no device */
export async function readDeviceFile(path: string): Promise<DeviceModel> {
  let text: string;
  try {
    const { size } = await Deno.stat(path);
    if (size > mostBytes) {
      throw new RangeError(`it has ${size} bytes, and a device's figures take less than ${mostBytes}`);
    }
    text = await Deno.readTextFile(path);
  } catch (error) {
    throw new RangeError(`Cannot read ${path}: ${(error as Error).message}`, { cause: error });
  }
  return parseDevice(text, path);
}
