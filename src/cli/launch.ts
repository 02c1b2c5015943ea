/**
 * How a start of `troupe train` came about: by itself, as the root of several hosts or as a member of them, told by
 * arguments, or by the variables that a launcher sets for each of the processes it starts. Under a launcher every process
 * is a host of one rank: that of rank 0 is the root, the others join it.
 */
import { ArgumentError, type DefaultArguments } from "./parser.ts";

export interface Launch {
  readonly role: "alone" | "root" | "member";
  /** Of the root; absent where there is no other host. */
  readonly host?: string;
  readonly port: number;
  /** Ranks in all; a member learns it from the root. */
  readonly world?: number;
  /** Number of this host's first rank, where a launcher has numbered them. */
  readonly firstRank?: number;
  /** That on its machine. */
  readonly localRank?: number;
  /** What set the variables, for people. */
  readonly launcher?: string;
}

type Environment = Readonly<Record<string, string | undefined>>;

/** The variables of one launcher. */
interface Launcher {
  readonly name: string;
  /** What shows that it is at work. */
  readonly marks: readonly string[];
  readonly rank: string;
  readonly world: string;
  readonly local: string;
  /** The root's address and port, as far as they can be known. */
  host(env: Environment): string | undefined;
  port(env: Environment): string | undefined;
  /** What to do where the root's address is not known. */
  readonly needsHost: string;
}

const launchers: Readonly<Record<"torch" | "mpi" | "slurm", Launcher>> = {
  torch: {
    name: "torchrun-style variables",
    marks: ["RANK", "WORLD_SIZE", "MASTER_ADDR"],
    rank: "RANK",
    world: "WORLD_SIZE",
    local: "LOCAL_RANK",
    host: (env) => env.MASTER_ADDR,
    port: (env) => env.MASTER_PORT,
    needsHost: "MASTER_ADDR",
  },
  mpi: {
    name: "Open MPI",
    marks: ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"],
    rank: "OMPI_COMM_WORLD_RANK",
    world: "OMPI_COMM_WORLD_SIZE",
    local: "OMPI_COMM_WORLD_LOCAL_RANK",
    // Open MPI says where its own processes listen, not where rank 0 runs; on one machine there is no question.
    host: (env) =>
      env.MASTER_ADDR ??
        (env.OMPI_COMM_WORLD_LOCAL_SIZE === env.OMPI_COMM_WORLD_SIZE ? "127.0.0.1" : undefined),
    port: (env) => env.MASTER_PORT,
    needsHost: "--host with the address of rank 0's machine, or MASTER_ADDR (mpirun -x MASTER_ADDR=...),",
  },
  slurm: {
    name: "Slurm",
    marks: ["SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NTASKS"],
    rank: "SLURM_PROCID",
    world: "SLURM_NTASKS",
    local: "SLURM_LOCALID",
    host: (env) => firstHost(env.SLURM_STEP_NODELIST ?? env.SLURM_JOB_NODELIST ?? ""),
    port: () => undefined,
    needsHost: "SLURM_STEP_NODELIST or SLURM_JOB_NODELIST",
  },
};

/**
 * The first host of a list as Slurm writes it.
 *
 * @example
 * ```ts
 * import { firstHost } from "./launch.ts";
 * console.assert(firstHost("gpu[007-010,012],big1") === "gpu007" && firstHost("a-1,a-2") === "a-1");
 * ```
 */
export function firstHost(list: string): string | undefined {
  const [, prefix = "", inner, suffix = ""] = list.match(/^([^,[]*)(?:\[([^\]]*)\]([^,[]*))?/) ?? [];
  const number = inner?.split(/[,-]/)[0] ?? "";
  return prefix + number + suffix || undefined;
}

function numberOf(env: Environment, name: string, launcher: string): number {
  const value = Number(env[name]);
  if (env[name] === undefined || !Number.isSafeInteger(value) || value < 0) {
    throw new ArgumentError(`${launcher}: ${name} is ${env[name] ?? "not set"}; a whole number is needed`);
  }
  return value;
}

/**
 * @param env the environment, such as `Deno.env.toObject()`
 * @throws {ArgumentError} where arguments or variables contradict each other, or something is missing
 */
export function detectLaunch(
  args: Pick<
    DefaultArguments,
    "given" | "host" | "port" | "join" | "launcher" | "rank" | "world_size" | "local_rank"
  >,
  env: Environment,
): Launch {
  const { given, host, join } = args, port = args.port;
  if (args.world_size !== undefined && args.world_size < 1) {
    throw new ArgumentError(`--world_size: ${args.world_size} is not above 0`);
  }
  if (join) {
    if (host === undefined) throw new ArgumentError("--join: --host with the root's address is missing");
    return { role: "member", host, port };
  }
  if (args.rank !== undefined && (args.world_size ?? 1) > 1) {
    if (host === undefined) throw new ArgumentError("--rank: --host with the address of rank 0's machine is missing");
    if (args.rank >= args.world_size!) {
      throw new ArgumentError(`--rank: ${args.rank} is not one of 0 to ${args.world_size! - 1}`);
    }
    const place = { host, port, firstRank: args.rank, localRank: args.local_rank ?? 0, launcher: "--rank" };
    return args.rank === 0 ? { role: "root", ...place, world: args.world_size! } : { role: "member", ...place };
  }
  const marked = (Object.keys(launchers) as (keyof typeof launchers)[]).find((name) =>
    launchers[name].marks.every((variable) => env[variable] !== undefined)
  );
  const chosen = given.has("launcher")
    ? args.launcher
    : host === undefined || marked !== undefined
    ? marked
    : undefined;
  if (chosen !== undefined) {
    const launcher = launchers[chosen], rank = numberOf(env, launcher.rank, launcher.name);
    const world = numberOf(env, launcher.world, launcher.name);
    if (world > 1) {
      const root = host ?? launcher.host(env);
      if (root === undefined) {
        throw new ArgumentError(`${launcher.name}: ${launcher.needsHost} would tell where the root is`);
      }
      const wanted = given.has("port") ? port : Number(launcher.port(env) ?? port);
      const place = {
        host: root,
        port: wanted,
        firstRank: rank,
        localRank: env[launcher.local] === undefined ? 0 : numberOf(env, launcher.local, launcher.name),
        launcher: launcher.name,
      };
      return rank === 0 ? { role: "root", ...place, world } : { role: "member", ...place };
    }
  }
  if (host !== undefined) {
    if (args.world_size === undefined) {
      throw new ArgumentError("--host: how many ranks are there in all, on all hosts? --world_size N says it");
    }
    return { role: "root", host, port, world: args.world_size };
  }
  if ((args.world_size ?? 1) > 1 || (args.rank ?? 0) > 0) {
    throw new ArgumentError(
      "--world_size and --rank: for ranks on one machine, --nproc N would work; for several hosts, --host names the root",
    );
  }
  return { role: "alone", port };
}
