/**
 * The program with Dawn for its WebGPU, where nothing says otherwise: `./troupe dawn train …`. An entry of its own, since
 * it takes a permission that nothing else needs: to load native code.
 */
import { endWithoutTeardown } from "../backend/webgpu/dawn.ts";
import { main } from "./main.ts";
import { enterUserFolder } from "./self.ts";

if (import.meta.main) {
  Deno.env.set("TROUPE_WEBGPU", "dawn"); // for the processes that it starts, too
  enterUserFolder();
  endWithoutTeardown();
  Deno.exitCode = await main(Deno.args);
}
