/** What stands in for a rank where only its control plane counts: benches and tests of many. */
import type { Initialised } from "./rank_protocol.ts";

/** The answer to `initialise` of a rank that trains nothing. */
export const nothingInitialised: Initialised = {
  step: 0,
  batch: 0,
  parameters: 1,
  memory: { total: 0 },
  device: "none",
  software: false,
  rows: 1,
};
