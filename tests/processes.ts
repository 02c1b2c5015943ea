/** What tests share that run the program as people do: as processes, which they signal and outlive. */
import { assert } from "@std/assert";
import { fileURLToPath } from "node:url";
import { openCheckpoint } from "../src/checkpoint/mod.ts";
import type { StoredBox } from "../src/checkpoint/manifest.ts";
import { denoCommand } from "../src/cli/self.ts";

const project = fileURLToPath(new URL("../", import.meta.url));

/** A folder and processes of its own for the test; nothing of either is there afterwards. */
export async function inFolder(body: (folder: string, processes: Processes) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await using processes = new Processes();
    await body(folder, processes);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

type Section = Record<string, unknown>;

/** Writes a run record of a tiny model on dummy data into `folder`, with changes by section. @returns its path */
export function tinyRecord(
  folder: string,
  { JOB_NAME, model_type, ...changes }: Record<string, Section | string> = {},
) {
  const record: Record<string, unknown> = { JOB_NAME: JOB_NAME ?? "tiny", model_type: model_type ?? "INTERNLM2" };
  const sections: Record<string, Section> = {
    model: {
      num_layers: 1,
      hidden_size: 16,
      num_attention_heads: 2,
      vocab_size: 256,
      mlp_ratio: 1,
      multiple_of: 8,
      no_bias: true,
    },
    data: { seq_len: 32, micro_bsz: 1, micro_num: 2, total_steps: 6, valid_every: 0 },
    adam: { lr: 1e-2 },
    ckpt: { save_ckpt_folder: `${folder}/checkpoints`, checkpoint_every: 5 },
    runtime: { run_dir: `${folder}/RUN/tiny` },
  };
  for (const name of new Set([...Object.keys(sections), ...Object.keys(changes)])) {
    record[name] = { ...sections[name], ...(changes[name] as Section) };
  }
  const path = `${folder}/record.yaml`;
  Deno.writeTextFileSync(path, JSON.stringify(record, undefined, 2));
  return path;
}

/** What is not there by then never comes: no machine is so slow. */
const hangMs = 300_000;

/** Text of a stream as it comes, and whoever waits for it. */
class Listener {
  text = "";
  ended = false;
  readonly done: Promise<void>;
  readonly #waiting = new Set<() => void>();

  constructor(stream: ReadableStream<Uint8Array>) {
    this.done = this.#read(stream);
  }

  async #read(stream: ReadableStream<Uint8Array>): Promise<void> {
    for await (const chunk of stream.pipeThrough(new TextDecoderStream() as TransformStream<Uint8Array, string>)) {
      this.text += chunk;
      this.#wake();
    }
    this.ended = true;
    this.#wake();
  }

  #wake(): void {
    for (const wake of this.#waiting) wake();
  }

  /** Resolves once the text so far is as wanted. @throws when the stream ends, or time passes, without it */
  async until(wanted: (text: string) => boolean, what: string): Promise<void> {
    const late = Promise.withResolvers<void>();
    const timer = setTimeout(() => late.reject(new Error(`waited too long for ${what} in:\n${this.text}`)), hangMs);
    try {
      while (!wanted(this.text)) {
        if (this.ended) throw new Error(`ended without ${what}:\n${this.text}`);
        const more = Promise.withResolvers<void>();
        this.#waiting.add(more.resolve);
        await Promise.race([more.promise, late.promise]);
        this.#waiting.delete(more.resolve);
      }
    } finally {
      clearTimeout(timer);
    }
  }
}

export interface Ended {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

export interface Started {
  readonly out: Listener;
  readonly err: Listener;
  /** Process group, as a terminal has one. */
  readonly group: number;
  readonly ended: Promise<Ended>;
}

export interface StartOptions {
  /** Where the user stands, and may write. */
  readonly folder: string;
  readonly env?: Readonly<Record<string, string>>;
  /** What besides `folder` may be written to. */
  readonly writable?: readonly string[];
}

/** No program shows its insides to people. */
export function assertNoStackTrace({ out, err }: Ended): void {
  assert(!/^\s+at .*\d+:\d+\)?$|Uncaught|panicked|RUST_BACKTRACE/m.test(out + err), err);
}

/**
 * Starts the program, sends signals and looks for processes; these through one shell, since a program may signal only its
 * own children.
 */
export class Processes implements AsyncDisposable {
  readonly #shell = new Deno.Command("sh", {
    args: [
      "-c",
      `while read -r signal pid; do
         if [ "$signal" = STATE ]; then
           state=gone
           [ -r "/proc/$pid/stat" ] && read -r line < "/proc/$pid/stat" && state=\${line##*) } && state=\${state%% *}
           echo "$state"
         elif [ "$signal" = CHILD ]; then
           child=
           [ -r "/proc/$pid/task/$pid/children" ] && read -r child others < "/proc/$pid/task/$pid/children"
           echo "$child"
         elif [ "$signal" = PEAK ]; then
           peak=gone
           [ -r "/proc/$pid/status" ] && while read -r key value _; do [ "$key" = VmHWM: ] && peak=$value; done < "/proc/$pid/status"
           echo "$peak"
         else kill -s "$signal" -- "$pid" 2>/dev/null && echo sent || echo gone
         fi
       done 2>/dev/null`,
    ],
    stdin: "piped",
    stdout: "piped",
  }).spawn();
  readonly #to = this.#shell.stdin.getWriter();
  readonly #from = this.#shell.stdout.pipeThrough(new TextDecoderStream() as TransformStream<Uint8Array, string>)
    .getReader();

  readonly #started: Started[] = [];

  /** Starts `deno task …` as the launcher does, in a process group of its own. */
  start(args: readonly string[], options: StartOptions): Started {
    return this.#start(denoCommand(), ["task", "--quiet", "--config", `${project}deno.json`, ...args], options);
  }

  /** Starts it by a line of shell, where `"$@"` stands for the program and its arguments. */
  startBy(shell: string, args: readonly string[], options: StartOptions): Started {
    const words = [denoCommand(), "task", "--quiet", "--config", `${project}deno.json`, ...args];
    return this.#start("sh", ["-c", shell, "sh", ...words], options);
  }

  #start(command: string, args: readonly string[], { folder, env = {}, writable = [] }: StartOptions): Started {
    const child = new Deno.Command(command, {
      args: [...args],
      cwd: folder,
      env: {
        NO_COLOR: "1",
        XDG_RUNTIME_DIR: "/tmp",
        TROUPE_WRITE: [folder, ...writable].map((path) => `,${path}`).join(""),
        INIT_CWD: folder,
        ...env,
      },
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
      detached: true,
    }).spawn();
    const out = new Listener(child.stdout), err = new Listener(child.stderr);
    const ended = Promise.all([child.status, out.done, err.done]).then(([{ code }]) => (
      { code, out: out.text, err: err.text }
    ));
    const started = { out, err, group: child.pid, ended };
    this.#started.push(started);
    return started;
  }

  /** Runs it to the end. */
  run(args: readonly string[], options: StartOptions): Promise<Ended> {
    return this.start(args, options).ended;
  }

  async #say(line: string): Promise<string> {
    await this.#to.write(new TextEncoder().encode(line + "\n"));
    return (await this.#from.read()).value!.trim();
  }

  /** @param pid a process, or minus a process group @returns whether it was there */
  async signal(signal: "KILL" | "INT" | "TERM" | "STOP" | "CONT", pid: number): Promise<boolean> {
    return await this.#say(`${signal} ${pid}`) === "sent";
  }

  /** Whether it runs or sleeps; a zombie does neither. */
  async alive(pid: number): Promise<boolean> {
    return !["gone", "Z", "X"].includes(await this.#say(`STATE ${pid}`));
  }

  /** The program's own process: what was started is the task that it runs under, and other tasks have none. */
  async programOf({ group }: Started): Promise<number> {
    let pid = 0;
    await until(async () => pid = Number(await this.#say(`CHILD ${group}`)), "the program's process");
    return pid;
  }

  /** Bytes of memory that it held at its most, resident; NaN once it is gone. */
  async peakBytes(pid: number): Promise<number> {
    return 1024 * Number(await this.#say(`PEAK ${pid}`));
  }

  /** Whether it was stopped by a signal. */
  async frozen(pid: number): Promise<boolean> {
    return await this.#say(`STATE ${pid}`) === "T";
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { group, ended } of this.#started) {
      await this.signal("KILL", -group);
      await ended;
    }
    await this.#to.close();
    await this.#from.cancel();
    await this.#shell.status;
  }
}

/** Asks again and again, as another process cannot be waited for. */
export async function until(condition: () => unknown, what: string): Promise<void> {
  const began = performance.now();
  while (!await condition()) {
    if (performance.now() - began > hangMs) throw new Error(`waited too long for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** A port that nobody has, and that none who take any free one are given: below those. */
export function freePort(): number {
  for (;;) {
    const port = 10_000 + Math.floor(Math.random() * 20_000);
    try {
      Deno.listen({ hostname: "127.0.0.1", port }).close();
      return port;
    } catch (error) {
      if (!(error instanceof Deno.errors.AddrInUse)) throw error;
    }
  }
}

/** The folders of this record's runs, oldest first. */
export function runFolders(folder: string): string[] {
  const root = `${folder}/RUN/tiny`;
  try {
    return [...Deno.readDirSync(root)].map(({ name }) => `${root}/${name}`).sort();
  } catch {
    return [];
  }
}

export interface RankList {
  readonly root: number;
  readonly ranks: readonly { rank: number; pid: number; attempt: number }[];
}

/** The process ids of the newest run; undefined before there are any. */
export function ranks(folder: string): RankList | undefined {
  const path = runFolders(folder).at(-1);
  try {
    return JSON.parse(Deno.readTextFileSync(`${path}/ranks.json`));
  } catch {
    return undefined;
  }
}

/** Waits for the rank's process number `attempt`. */
export async function rankOf(folder: string, attempt = 1, number = 0): Promise<number> {
  let pid: number | undefined;
  await until(
    () => pid = ranks(folder)?.ranks.find(({ rank, attempt: its }) => rank === number && its >= attempt)?.pid,
    `attempt ${attempt} of rank ${number}`,
  );
  return pid!;
}

export interface CurvePoint {
  readonly step: number;
  readonly loss: number;
  readonly gradNorm: number;
  readonly lr: number;
}

/** What must not depend on accidents, of every line of metrics. */
export function curve(folder: string): CurvePoint[] {
  const path = runFolders(folder).at(-1);
  return Deno.readTextFileSync(`${path}/metrics.jsonl`).trim().split("\n").map((line) => {
    const { step, loss, gradNorm, lr } = JSON.parse(line);
    return { step, loss, gradNorm, lr };
  });
}

/** A box of a tensor under its name, its bytes as text. */
export const entryText = (
  { kind, name, offset, extent }: Pick<StoredBox, "kind" | "name" | "offset" | "extent">,
  values: Float32Array,
): Record<string, string> => ({
  [`${kind}/${name}/${offset}/${extent}`]: String(new Uint32Array(values.buffer, values.byteOffset, values.length)),
});

/** Every entry of a checkpoint. */
export function checkpointEntries(folder: string, step: number): Record<string, string> {
  using checkpoint = openCheckpoint(`${folder}/checkpoints/${step}`);
  const entries: Record<string, string> = {};
  for (const { boxes } of checkpoint.manifest.files) {
    for (const box of boxes) {
      const values = new Float32Array(box.extent.reduce((product, size) => product * size, 1));
      checkpoint.readBox(box.kind, box.name, box, values);
      Object.assign(entries, entryText(box, values));
    }
  }
  return entries;
}
