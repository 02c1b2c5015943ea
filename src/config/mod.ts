/**
 * The run record: its schema, defaults, derived values and checks.
 *
 * `loadConfig` reads what the user wrote, `resolveConfig` makes the complete record of it or says all that is wrong.
 */
export { parseBytes } from "./bytes.ts";
export { ConfigError } from "./error.ts";
export { configHelp, printResolved } from "./help.ts";
export { applyChanges, loadConfig } from "./load.ts";
export { type ParallelSizes, parallelSizes, resized } from "./parallel_sizes.ts";
export { resolveConfig } from "./resolve.ts";
export { type ResolvedConfig } from "./schema/mod.ts";
