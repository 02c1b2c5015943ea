/**
 * The program: verbs for people, and the processes and workers that a run starts from the same file.
 *
 *     deno task train --config configs/demo.yaml
 */
import { isMainThread, workerData } from "node:worker_threads";
import { ConfigError } from "../config/error.ts"; // alone, as workers need no more of a run record
import { nearest } from "../config/nearest.ts";
import { ArgumentError } from "./parser.ts";
import { enterUserFolder, programVersion } from "./self.ts";
import type { Verb } from "./verb.ts";

/** Loaded when asked for, so that no verb pays for another. `hidden` ones are for the program itself. */
const verbs: Readonly<Record<string, { load: () => Promise<Verb>; hidden?: true }>> = {
  train: { load: async () => (await import("./train.ts")).train },
  verify: { load: async () => (await import("./verify.ts")).verify },
  plan: { load: async () => (await import("./plan.ts")).plan },
  config: { load: async () => (await import("./config.ts")).config },
  tokenize: { load: async () => (await import("./tokenize.ts")).tokenize },
  data: { load: async () => (await import("./data.ts")).data },
  convert: { load: async () => (await import("./convert.ts")).convert },
  blackbox: { load: async () => (await import("./blackbox.ts")).blackbox },
  doctor: { load: async () => (await import("./doctor.ts")).doctorVerb },
  bench: { load: async () => (await import("./bench.ts")).bench },
  tune: { load: async () => (await import("./tune.ts")).tuneVerb },
  test: { load: async () => (await import("./of_sources.ts")).test },
  compile: { load: async () => (await import("./of_sources.ts")).compile },
  rank: { load: async () => (await import("./rank.ts")).rank, hidden: true },
};

async function help(): Promise<number> {
  console.log(
    "Usage: troupe VERB [arguments]\n\nTroupe trains large language models on any GPU that WebGPU reaches.\n",
  );
  for (const [name, { load, hidden }] of Object.entries(verbs)) {
    if (!hidden) console.log(`  ${name.padEnd(10)}${(await load()).summary}`);
  }
  console.log(
    "\n`troupe VERB --help` tells what a verb takes; `troupe config --help` lists every field of a run record." +
      "\n`./troupe dawn VERB` has Dawn compute, once `./troupe doctor --add-dawn` has fetched it.",
  );
  return 0;
}

/** Runs one verb; whatever goes wrong ends in one sentence and an exit code, never in a stack trace. */
export async function main([name = "help", ...args]: readonly string[]): Promise<number> {
  if ((name === "help" ? args[0] : name) === "--version") {
    console.log(`troupe ${programVersion}`);
    return 0;
  }
  if (name === "help" || name === "--help" || name === "-h") {
    return args.length === 0 || /^(-h|--help)$/.test(args[0]!) ? await help() : await main([args[0]!, "--help"]);
  }
  if (!Object.hasOwn(verbs, name)) {
    const close = nearest(name, visible);
    console.error(
      `troupe: there is no verb ${JSON.stringify(name)}; ${
        close === undefined ? `there are ${visible.join(", ")}` : `${close} is the nearest`
      }`,
    );
    return 2;
  }
  try {
    return await (await verbs[name]!.load()).run(args);
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    console.error(`troupe ${name}: ${explain(error)}`);
    if (Deno.env.get("TROUPE_DEBUG")) console.error(error.stack);
    return error instanceof ArgumentError || error instanceof ConfigError ? 2 : 1;
  }
}

const visible = Object.entries(verbs).filter(([, { hidden }]) => !hidden).map(([verb]) => verb);

/** The sentence of an error; for a refused permission, what to type. */
function explain(error: Error): string {
  if (error instanceof Deno.errors.NotCapable && error.message.includes("write")) {
    return `${error.message.split(",")[0]}. Only this folder may be written to; TROUPE_WRITE=,FOLDER allows another`;
  }
  if (error instanceof Deno.errors.NotCapable && error.message.includes("net access")) {
    return `${error.message.split(",")[0]}. Only this machine may be talked to; TROUPE_NET=,HOST allows another`;
  }
  return error.message;
}

if (!isMainThread) await (await import("./worker.ts")).runWorker(workerData);
else if (import.meta.main) {
  enterUserFolder();
  Deno.exitCode = await main(Deno.args);
}
