export interface ParseOptions {
  boolean?: readonly string[];
  string?: readonly string[];
  collect?: readonly string[];
  alias?: Record<string, string | readonly string[]>;
  default?: Record<string, unknown>;
  negatable?: readonly string[];
  stopEarly?: boolean;
  "--"?: boolean;
  /** Called for an argument that no option names; returning false drops it. */
  unknown?: (argument: string, key?: string, value?: unknown) => unknown;
}
export interface Args {
  _: (string | number)[];
  [name: string]: unknown;
}
export function parseArgs(args: readonly string[], options?: ParseOptions): Args;
