/** A parent that starts the echo actor elsewhere, prints its process id, and waits for its end or does not. */
import { createRuntime, inProcess, inWorker } from "../mod.ts";
import { echoProtocol } from "./echo.ts";

const runtime = createRuntime();
const url = new URL("./echo_main.ts", import.meta.url);
const [place, then] = Deno.args;
const ref = runtime.spawn(
  "echo",
  place === "worker" ? inWorker(echoProtocol, { url }) : inProcess(echoProtocol, { args: ["run", url.pathname] }),
);
console.log(await ref.ask({ kind: "pid" }, { timeoutMs: 300_000 }));
if (then === "wait") await runtime.terminated(ref);
