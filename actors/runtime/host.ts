/**
 * Places to run actors in: processes and workers of this program, each with a channel to it.
 *
 * Neither keeps a finished program alive: only waiting does, for `runtime.terminated(ref)` or `runtime.stop()`. A process sees the
 * end of its parent as the end of its standard input. Workers are those of `node:worker_threads`, not the web's: a web
 * worker that calls `Deno.exit` or `self.close` ends without any event, this one tells. Neither tells of an endless loop:
 * that takes a heartbeat.
 */
import { isMainThread, type MessagePort, parentPort, Worker } from "node:worker_threads";
import { type Channel, lost, makeChannel, streamChannel, type StreamOptions } from "./channel.ts";
import { crashed, type Reason } from "./reason.ts";
import { holdOpen } from "./runtime.ts";

/** What runs elsewhere, under this program's control. */
export interface Host {
  readonly channel: Channel;
  /** Resolves when the process or worker is gone, with how it went. Keeps the program alive once the channel has ended. */
  readonly ended: Promise<Reason>;
  /** Process id; absent for a worker. */
  readonly pid?: number;
  /** Ends it by force. A worker knows no signals. @default {"SIGKILL"} */
  kill(signal?: Deno.Signal): void;
}

export interface HostOptions {
  /** What is still there so long after its channel ended is killed. @default {5000} */
  readonly graceMs?: number;
}

export interface ProcessOptions extends HostOptions, StreamOptions {
  /** @default {Deno.execPath()} */
  readonly command?: string;
  /** For Deno: `["run", ...permissions, script]`. */
  readonly args: readonly string[];
  /** Added to this process's environment. */
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
  /** @default {"inherit"} */
  readonly stderr?: "inherit" | "null";
}

/** Starts a process whose standard input and output are its channel: there, {@linkcode parentChannel}. */
export function spawnProcess(options: ProcessOptions): Host {
  const { command = Deno.execPath(), args, env = {}, cwd, stderr = "inherit", graceMs = 5000 } = options;
  const child = new Deno.Command(command, {
    args: [...args],
    env: { ...env },
    ...(cwd === undefined ? {} : { cwd }),
    stdin: "piped",
    stdout: "piped",
    stderr,
  }).spawn();
  child.unref();
  const status = child.status.then(({ code, signal }): Reason =>
    signal === null ? { kind: "exited", code } : { kind: "killed", signal, number: code - 128 }
  );
  const kill = (signal: Deno.Signal = "SIGKILL") => {
    try {
      child.kill(signal);
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // it has ended
    }
  };
  const channel = stdioChannel(child, status, options);
  return { channel, ended: endedHost(channel, status, kill, graceMs), pid: child.pid, kill };
}

/**
 * The channel over a child's standard input and output. When the child dies, the channel's reason is the child's `status`:
 * which signal or code, not merely that the pipe broke.
 */
export function stdioChannel(
  child: { readonly stdin: WritableStream<Uint8Array>; readonly stdout: ReadableStream<Uint8Array> },
  status: Promise<Reason>,
  options: StreamOptions = {},
): Channel {
  const stream = streamChannel(child.stdout, child.stdin, options);
  const { channel, arrived } = makeChannel((message) => void stream.send(message), async (reason) => {
    stream.close(reason);
    await stream.closed;
  });
  stream.receive(arrived);
  stream.closed.then(async (reason) => {
    const bad = reason.kind === "lost" && reason.detail.startsWith("bad frame");
    channel.close(bad ? reason : await within(1000, status) ?? reason);
  });
  status.then(async (reason) => {
    await within(250, stream.closed); // what it wrote last may still be in the pipe
    channel.close(reason);
  });
  return channel;
}

export interface WorkerOptions extends HostOptions {
  readonly url: string | URL;
  /** What the worker finds as `workerData` in `node:worker_threads`: cloned, but shared memory is shared. */
  readonly data?: unknown;
}

/** Starts a worker, which calls {@linkcode parentChannel}. It needs read permission for its file and all that it imports. */
export function spawnWorker({ url, data, graceMs = 5000 }: WorkerOptions): Host {
  const worker = new Worker(url instanceof URL ? url : new URL(url), { workerData: data });
  let failure: Reason | undefined;
  worker.on("error", (error) => failure = crashed(error));
  const status = new Promise<Reason>((resolve) => {
    worker.on("exit", (code) => resolve(failure ?? { kind: "exited", code }));
  });
  const channel = workerChannel(worker);
  worker.unref();
  status.then((reason) => channel.close(reason));
  const kill = () => void worker.terminate();
  return { channel, ended: endedHost(channel, status, kill, graceMs), kill };
}

/** A channel over `postMessage`: a worker as its parent sees it, or the port by which the worker sees its parent. */
export function workerChannel(port: Worker | MessagePort): Channel {
  const { channel, arrived } = makeChannel(
    (message) => port.postMessage({ message }),
    () => port.postMessage({ end: true }),
  );
  port.on("message", (data: { message: unknown } | { end: true }) => {
    if ("end" in data) channel.close(lost("closed by the other side"));
    else arrived(data.message);
  });
  return channel;
}

let toParent: Channel | undefined;

/**
 * In a process or worker that was started here: the channel to its parent. From this call on, a process prints to standard
 * error only: standard output carries frames, and whatever was printed there before is a bad one.
 */
export function parentChannel(): Channel {
  if (toParent !== undefined) return toParent;
  if (!isMainThread && parentPort !== null) return toParent = workerChannel(parentPort);
  console.log = console.info = console.debug = console.error;
  return toParent = streamChannel(Deno.stdin.readable, Deno.stdout.writable);
}

/** Resolves when all is gone; sees to it that it goes once the channel has ended. */
async function endedHost(
  channel: Channel,
  status: Promise<Reason>,
  kill: () => void,
  graceMs: number,
): Promise<Reason> {
  await channel.closed;
  return await holdOpen((async () => {
    if (await within(graceMs, status) === undefined) kill();
    return await status;
  })());
}

/** The promise's value, or `undefined` when it takes longer. Does not keep the program alive. */
export async function within<T>(milliseconds: number, promise: Promise<T>): Promise<T | undefined> {
  const { promise: late, resolve } = Promise.withResolvers<undefined>();
  const timer = setTimeout(() => resolve(undefined), milliseconds);
  Deno.unrefTimer(timer);
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
