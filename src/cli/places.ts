/** Places of a run's ranks: on which hosts they are, in which processes, and where those of a start meet. */
import type { Hosts, Seat } from "../../actors/hosts.ts";
import type { Host } from "../../actors/runtime/mod.ts";
import type { Muster } from "../../actors/supervisor.ts";
import { openRendezvous, type Rendezvous } from "../comm/transport/rendezvous.ts";
import { resized, type ResolvedConfig } from "../config/mod.ts";
import { rankVariables } from "./rank_variables.ts";
import { hostSockets, startRankProcess } from "./rank_process.ts";
import { programVersion } from "./self.ts";

export interface PlacesOptions {
  readonly config: ResolvedConfig;
  /** Ranks in all, when all are there. */
  readonly world: number;
  /** Of this host, by which the ranks of others reach its own. */
  readonly address: string;
  readonly token: string;
  /** Where the root listens for communicators. */
  readonly controlPort: number;
  /** Folders that ranks write to. */
  readonly write: readonly string[];
  /** Leave a profile of a step in the run's folder. */
  readonly profile: boolean;
  /** Number of this host's first rank among those of its machine. */
  readonly localRank: number | undefined;
  /** Where there may be others. */
  readonly hosts: Hosts | undefined;
  readonly onNotice: (text: string) => void;
  /** Processes came, or are no longer counted with. */
  readonly onChange: () => void;
}

/** How long ranks may take from the first to the last to be there: processes start, devices open, data is read. */
export const meetingMs = 600_000;
/** How long a run that may go on with fewer ranks waits for those that are lost. */
const replacementMs = 10_000;

export class Places implements AsyncDisposable {
  readonly #options: PlacesOptions;
  readonly #sockets: ReturnType<typeof hostSockets>;
  readonly #living = new Map<number, { readonly host: Host; readonly attempt: number }>();
  #seats: readonly Seat[];
  #meeting: Rendezvous | undefined;

  constructor(options: PlacesOptions) {
    const { nproc } = options.config.runtime;
    this.#options = options;
    this.#sockets = hostSockets(nproc, options.localRank);
    this.#seats = Array.from({ length: nproc }, (_, localRank) => ({ member: undefined, localRank }));
  }

  /** Processes of the present start, by rank. */
  get living(): { rank: number; pid: number; attempt: number }[] {
    const sorted = [...this.#living].sort(([a], [b]) => a - b);
    return sorted.map(([rank, { host, attempt }]) => ({ rank, pid: host.pid!, attempt }));
  }

  /** Waits for the hosts, and opens the place where the ranks of a start meet; that of the start before is closed. */
  async muster(attempt: number): Promise<Muster> {
    const { config, address, token } = this.#options, { encrypt } = config.runtime;
    await this.#meeting?.close();
    this.#living.clear();
    const { record, notice } = await this.#takeSeats(attempt), ranks = this.#seats.length;
    const mustered = { config: record, world: ranks, ...(notice ? { notice } : {}) };
    if (ranks === 1) return mustered;
    const fingerprint = `${programVersion} ${attempt}`, timeoutMs = meetingMs;
    this.#meeting = openRendezvous({ hostname: address, world: ranks, token, fingerprint, encrypt, timeoutMs });
    const { port } = this.#meeting;
    return { ...mustered, meeting: { hostname: address, port, world: ranks, fingerprint, encrypt, timeoutMs } };
  }

  /** @returns the record of as many ranks as there are, and what is different from the start before */
  async #takeSeats(attempt: number): Promise<{ record: ResolvedConfig; notice?: string }> {
    const { config, world, address, hosts, onNotice } = this.#options;
    if (!hosts) return { record: config };
    const before = this.#seats.length, missing = world - hosts.ranks;
    if (missing > 0) {
      onNotice(
        `Waiting for ${missing} of ${world} ranks; on their hosts, with the same record and ${rankVariables.token}: ` +
          `troupe train --join --host ${address} --port ${hosts.port} --nproc N`,
      );
    }
    this.#seats = await hosts.muster({
      patienceMs: attempt === 1 ? meetingMs : replacementMs,
      timeoutMs: meetingMs,
      enough: (ranks) => config.runtime.elastic && resized(config, world, ranks) !== undefined,
    });
    const ranks = this.#seats.length;
    if (ranks === world) {
      return {
        record: config,
        ...(attempt > 1 && before !== world ? { notice: `All ${world} ranks are there again` } : {}),
      };
    }
    const record = resized(config, world, ranks)!, { size } = record.parallel.zero1;
    const notice = `Going on with ${ranks} of ${world} ranks (runtime.elastic), with the same batches` +
      (size === config.parallel.zero1.size ? "" : `; parallel.zero1.size is ${size} now`);
    return { record, notice };
  }

  /** Starts the process of a rank, here or on the host that it is on. */
  start(attempt: number, rank: number): Host {
    const { address, token, controlPort, write, profile, hosts, onChange } = this.#options;
    const seat = this.#seats[rank]!, world = this.#seats.length, sockets = this.#sockets;
    const start = {
      rank,
      attempt,
      localRank: seat.localRank,
      world,
      control: { hostname: address, port: controlPort },
      write: [...write],
      // A rank listens on any port and connects to those of the others.
      net: hosts ? hosts.addresses() : [world === 1 ? `${address}:${controlPort}` : address],
    };
    const host = seat.member
      ? hosts!.start(seat, start)
      : startRankProcess({ ...start, token, address, profile, sockets });
    this.#living.set(rank, { host, attempt });
    onChange();
    return host;
  }

  kill(rank: number): void {
    this.#living.get(rank)?.host.kill();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#meeting?.close();
  }
}
