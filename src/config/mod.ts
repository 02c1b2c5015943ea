/** The run record: its schema, defaults, derived values and checks. */
export type { ResolvedConfig } from "./schema/mod.ts";
