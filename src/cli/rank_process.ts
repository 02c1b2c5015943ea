/** Starts a rank as a process of this program, with the least permissions that it can work with. */
import { type Host, spawnProcess } from "../../actors/runtime/mod.ts";
import { socketFolder } from "../comm/transport/local_sockets.ts";
import { deviceVariable, profileVariable, rankVariables, socketVariable } from "./rank_variables.ts";
import { type Permissions, selfCommand } from "./self.ts";

export interface RankProcessOptions {
  readonly rank: number;
  readonly attempt: number;
  /** Number of the rank on its host: chooses its GPU. */
  readonly localRank: number;
  /** Ranks in all. */
  readonly world: number;
  /** Where the root listens for communicators. */
  readonly control: { readonly hostname: string; readonly port: number };
  readonly token: string;
  /** The address of this host, by which ranks of others reach the rank. */
  readonly address: string;
  /** Leave a profile of a step in the run's folder. */
  readonly profile?: boolean;
  /** What it may write to, and whom it may talk to. */
  readonly write: readonly string[];
  readonly net: readonly string[];
  /** Of the ranks of its host. */
  readonly sockets?: HostSockets | undefined;
}

/** Unix sockets of the ranks that one process starts. */
export interface HostSockets {
  /** By the rank's number on its host; absent for one that has none. */
  path(localRank: number): string | undefined;
  /** These permissions, and those to make the sockets and to use them. */
  allow(permissions: Permissions & { readonly net: readonly string[] }): Permissions;
}

/**
 * @param ranks to be started on this host
 * @param first number of the first of them on it
 */
export function hostSockets(ranks: number, first = 0): HostSockets {
  const folder = ranks > 1 ? socketFolder() : undefined;
  const paths = folder === undefined ? [] : Array.from({ length: ranks }, (_, i) => `${folder}/${first + i}`);
  return {
    path: (localRank) => paths[localRank - first],
    allow: (permissions) =>
      folder === undefined ? permissions : {
        ...permissions,
        write: [...(Array.isArray(permissions.write) ? permissions.write : []), folder],
        net: [...permissions.net, ...paths.map((path) => `unix:${path}`)],
      },
  };
}

/**
 * Beside what the rank itself reads, its environment has the variables that other launchers set too (`RANK`, `LOCAL_RANK`,
 * `WORLD_SIZE`), for drivers and plugins that go by them.
 */
export function rankEnvironment(
  options: Omit<RankProcessOptions, "write" | "net">,
): Record<string, string> {
  const { rank, attempt, localRank, world, control: { hostname, port }, token, address, profile, sockets } = options;
  const socket = sockets?.path(localRank), own = ownVariables(localRank, (name) => Deno.env.get(name));
  return {
    [rankVariables.control]: `${hostname.includes(":") ? `[${hostname}]` : hostname}:${port}`,
    [rankVariables.token]: token,
    [rankVariables.rank]: String(rank),
    [rankVariables.attempt]: String(attempt),
    [rankVariables.address]: address,
    ...(profile ? { [profileVariable]: "1" } : {}),
    // A process that differs from another in none of these sees the same first GPU.
    ...(socket === undefined ? {} : { [socketVariable]: socket, [deviceVariable]: JSON.stringify(own) }),
    LOCAL_RANK: String(localRank),
    WORLD_SIZE: String(world),
    ...own,
  };
}

/**
 * What the user wants in the environment of the ranks of this number on their host: `TROUPE_RANK_ENV_0` and so on, each
 * `NAME=value` with spaces between. Drivers are told by such variables which GPU to show.
 *
 * @throws {RangeError} on a word that is none
 *
 * @example
 * ```ts
 * import { ownVariables } from "./rank_process.ts";
 * const { DRI_PRIME } = ownVariables(1, (name) => name === "TROUPE_RANK_ENV_1" ? "DRI_PRIME=pci-0000_03_00_0" : undefined);
 * console.assert(DRI_PRIME === "pci-0000_03_00_0");
 * ```
 */
export function ownVariables(
  localRank: number,
  read: (name: string) => string | undefined,
): Record<string, string> {
  const name = `TROUPE_RANK_ENV_${localRank}`, words = (read(name) ?? "").split(/\s+/).filter(Boolean);
  return Object.fromEntries(words.map((word) => {
    const [, key, value] = word.match(/^([A-Za-z_]\w*)=(.*)$/) ?? [];
    if (key === undefined) throw new RangeError(`Cannot read ${name}: "${word}" is not NAME=value`);
    return [key, value!];
  }));
}

export function startRankProcess({ write, net, ...options }: RankProcessOptions): Host {
  const permissions = {
    read: true,
    env: true,
    write,
    net,
    sys: ["systemMemoryInfo", "statfs"],
    // Granted where the run was started with Dawn.
    ...(Deno.permissions.querySync({ name: "ffi" }).state === "granted" ? { ffi: true } : {}),
  } satisfies Permissions;
  const { command, args, env } = selfCommand(["rank"], options.sockets?.allow(permissions) ?? permissions);
  return spawnProcess({ command, args, env: { ...env, ...rankEnvironment(options) } });
}
