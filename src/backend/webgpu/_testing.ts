/** What tests of several rooms need of Dawn. */
import { findDawn, loadDawn } from "./dawn.ts";

/**
 * A device of Dawn without hardware, which computes nothing and compiles every text, those for matrix units too; or why
 * there is none.
 */
export async function nullDawn(): Promise<GPUDevice | string> {
  if (findDawn() === undefined) return "Dawn is not here; ./troupe doctor --add-dawn adds it";
  if (Deno.permissions.querySync({ name: "ffi" }).state !== "granted") return "Dawn needs --allow-ffi";
  const adapter = await (await loadDawn({ more: ["backend=null"] })).requestAdapter();
  const requiredFeatures = ["chromium-experimental-subgroup-matrix", "subgroups", "shader-f16"] as GPUFeatureName[];
  return await adapter!.requestDevice({ requiredFeatures });
}
