/** A parent that starts the echo process and waits; the test kills it. Prints the child's process id. */
import { createRuntime, inProcess } from "../mod.ts";
import { echoProtocol } from "./echo.ts";

const runtime = createRuntime();
const script = new URL("./echo_main.ts", import.meta.url).pathname;
const ref = runtime.spawn("echo", inProcess(echoProtocol, { args: ["run", script] }));
console.log(await ref.ask({ kind: "pid" }, { timeoutMs: 30_000 }));
if (Deno.args[0] === "wait") await runtime.terminated(ref);
