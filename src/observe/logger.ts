/** Log lines as InternEvo writes them: `{time}\t{LEVEL} {file}:{line} in {function} -- {message}`. */
import { AppendFile } from "./append_file.ts";

const logLevels = ["debug", "info", "warning", "error"] as const;
export type LogLevel = typeof logLevels[number];

/** Where lines go, one call a line, without the line's end. */
export type LogSink = (line: string, level: LogLevel) => void;

export interface Logger {
  debug(message: string): void;
  info(message: string): void;
  warning(message: string): void;
  error(message: string): void;
}

export interface LoggerOptions {
  readonly sinks: readonly LogSink[];
  /** Lines below it are dropped. @default {"info"} */
  readonly level?: LogLevel;
  /** @default {() => new Date()} */
  readonly now?: () => Date;
}

/**
 * @example
 * ```ts
 * import { createLogger } from "./logger.ts";
 * const lines: string[] = [];
 * createLogger({ sinks: [(line) => lines.push(line)] }).info("ready");
 * console.assert(lines[0].endsWith("-- ready"));
 * ```
 */
export function createLogger(options: LoggerOptions): Logger {
  const { sinks, level = "info", now = () => new Date() } = options;
  const least = logLevels.indexOf(level);
  const write = (at: LogLevel) => (message: string) => {
    if (logLevels.indexOf(at) < least) return;
    const line = `${asctime(now())}\t${at.toUpperCase()} ${caller()} -- ${message}`;
    for (const sink of sinks) sink(line, at);
  };
  return { debug: write("debug"), info: write("info"), warning: write("warning"), error: write("error") };
}

/** A sink that appends to a file; dispose it to close the file. */
export function fileSink(path: string): LogSink & Disposable {
  const file = new AppendFile(path);
  const encoder = new TextEncoder();
  const sink = (line: string) => void file.append(encoder.encode(line + "\n"));
  return Object.assign(sink, { [Symbol.dispose]: () => file[Symbol.dispose]() });
}

/** `2024-01-31 09:05:07,042`, local time. */
function asctime(date: Date): string {
  const two = (value: number) => String(value).padStart(2, "0");
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  const time = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  return `${day} ${time},${String(date.getMilliseconds()).padStart(3, "0")}`;
}

/** `{file}:{line} in {function}` of whoever called the logger, read off the stack. */
function caller(): string {
  // Error, caller, write, then the place that logged.
  const frame = new Error().stack?.split("\n")[3] ?? "";
  const [, named, place] = /at (?:(?:async )?(.+?) \()?([^()]+?)\)?$/.exec(frame) ?? [];
  const [, file, line] = /([^/]+?):(\d+):\d+$/.exec(place ?? "") ?? [];
  return file ? `${file}:${line} in ${named?.split(".").at(-1) ?? "<module>"}` : "unknown:0 in <module>";
}
