/** What a rank's process is told by environment when it is started. */

/**
 * Where the root listens, the run's token, which rank of which start this is, and the address by which other ranks reach
 * it: by environment, which other users of the machine cannot read.
 */
export const rankVariables = {
  control: "TROUPE_CONTROL",
  token: "TROUPE_TOKEN",
  rank: "RANK",
  attempt: "TROUPE_ATTEMPT",
  address: "TROUPE_ADDRESS",
} as const;

/** A path for this rank's Unix socket, where ranks of the same host may have some. */
export const socketVariable = "TROUPE_SOCKET";
/** What chooses its GPU, where the host's ranks may share one. */
export const deviceVariable = "TROUPE_DEVICE";

/** Set where `train --profiling` asks for a profile. */
export const profileVariable = "TROUPE_PROFILE";
