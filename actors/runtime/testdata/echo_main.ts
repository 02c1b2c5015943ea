/** Runs the echo actor as a process or a worker. */
import { isMainThread } from "node:worker_threads";
import { serve } from "../mod.ts";
import { echo } from "./echo.ts";

await serve((parent) => {
  if (isMainThread) console.log("a line for people does no harm");
  return echo(parent);
}, { log: () => {} });
