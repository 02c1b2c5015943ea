/** Runs the echo actor as a process or a worker. */
import { serve } from "../mod.ts";
import { echo } from "./echo.ts";

await serve((parent) => {
  console.log("a line for people does no harm");
  return echo(parent);
}, { log: () => {} });
