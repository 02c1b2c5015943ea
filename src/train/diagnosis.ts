/**
 * The self-test that a run does every `data.empty_cache_and_diag_interval` batches: each rank times the same small matrix
 * product on its device and, where there are others, messages to and from its neighbours. A rank that needs more than
 * `data.diag_outlier_ratio` times the mean is named, as is one that fell far behind its own past.
 *
 * Ranks are compared within their `nettest` group of up to 32. A slow link slows both its ends, so that a rank counts by
 * the quicker of its two links: one that is slow to either side has a slow device, cable or host.
 */
import { matmul } from "../../kernels/matmul/mod.ts";
import type { Backend, DeviceBuffer } from "../backend/backend.ts";
import { settle } from "../graph/program.ts";
import type { World } from "../parallel/world.ts";

export interface DiagnosisOptions {
  readonly backend: Backend;
  readonly world: World;
  /** `data.diag_outlier_ratio`: at least 1. */
  readonly ratio: number;
}

/** One test of one group, in seconds; by the ranks' places in `ranks`. */
export interface DiagnosisReport {
  readonly ranks: readonly number[];
  readonly product: Float32Array;
  /** Zeros where a rank is alone. */
  readonly messages: Float32Array;
  /** A sentence for each rank that stands out. */
  readonly outliers: readonly string[];
}

/**
 * Shorter differences are noise, whatever their ratio: in seconds, on a GPU of one's own and on a device of software,
 * whose cores have other work as well.
 */
const leastDifference = { hardware: 2e-4, software: 2e-2 };
/** How many tests make a past, and how many times slower than it is far behind. */
const pastTests = 5, farBehind = 2;
const repeats = 3, messageWords = 1 << 16;

/** Places of the ranks whose time is above `ratio` times the mean of the others, and by `least` seconds. */
export function outliersOf(seconds: ArrayLike<number>, ratio: number, least = leastDifference.software): number[] {
  const all = Array.from(seconds), sum = all.reduce((total, time) => total + time, 0);
  return all.flatMap((time, place) => {
    const mean = (sum - time) / (all.length - 1);
    return all.length > 1 && time > mean * ratio && time - mean > least ? [place] : [];
  });
}

export class Diagnosis {
  readonly #options: DiagnosisOptions;
  readonly #past: number[] = [];

  constructor(options: DiagnosisOptions) {
    this.#options = options;
  }

  get #software(): boolean {
    const { backend } = this.#options;
    return backend.traits.software || backend.name !== "webgpu";
  }

  /** All ranks call it at the same point of their work. Holds device memory only while it runs. */
  async run(): Promise<DiagnosisReport> {
    const { world, ratio } = this.#options, group = world.group("nettest"), { ranks, index } = group;
    const times = new Float32Array(2 * ranks.length);
    times[2 * index] = await this.#timeProduct();
    if (ranks.length > 1) {
      times[2 * index + 1] = await this.#timeMessages();
      await group.allGather(times);
    }
    const product = times.filter((_, i) => i % 2 === 0), messages = times.filter((_, i) => i % 2 === 1);
    const outliers: string[] = [], least = leastDifference[this.#software ? "software" : "hardware"];
    const compare = (seconds: Float32Array, what: string) => {
      const mean = seconds.reduce((sum, time) => sum + time, 0) / seconds.length;
      for (const place of outliersOf(seconds, ratio, least)) {
        outliers.push(
          `Rank ${ranks[place]} stands out: ${what} took it ${milliseconds(seconds[place]!)}, and ${
            milliseconds(mean)
          } ` +
            `on the mean of ${ranks.length} ranks (data.diag_outlier_ratio ${ratio})`,
        );
      }
    };
    compare(product, "a matrix product");
    // Two ranks have one link: it has no other to be compared with.
    if (ranks.length > 2) compare(messages, "a message to its neighbours and back");
    const own = product[index]!, past = this.#past.toSorted((a, b) => a - b)[this.#past.length >> 1] ?? 0;
    if (this.#past.length >= pastTests && own > past * farBehind && own - past > least) {
      outliers.push(
        `Rank ${ranks[index]} has slowed down: a matrix product took it ${milliseconds(own)}, and ` +
          `${milliseconds(past)} in its last tests`,
      );
    }
    this.#past.push(own);
    if (this.#past.length > 20) this.#past.shift();
    return { ranks, product, messages, outliers };
  }

  /** The quickest of some rounds of products of the same square matrices. */
  async #timeProduct(): Promise<number> {
    const { backend } = this.#options, [size, count] = this.#software ? [64, 1] : [1024, 32];
    const kernel = matmul({ m: size, n: size, k: size });
    const buffers: DeviceBuffer[] = [];
    try {
      const ranges = kernel.operands.map(({ name, length }) => {
        const buffer = backend.allocate(4 * length, `diagnosis ${name}`);
        buffers.push(buffer);
        return { buffer, offset: 0, bytes: 4 * length };
      });
      const list = await backend.prepare(
        Array.from({ length: count }, () => ({ kind: "dispatch" as const, kernel, ranges })),
      );
      const result = { buffer: ranges.at(-1)!.buffer, offset: 0, bytes: 4 };
      let best = Infinity;
      for (let i = 0; i <= repeats; i++) {
        const started = performance.now();
        backend.submit(list);
        const ticket = backend.read([result]);
        ticket.wait(); // before the thread is given up, in which others of this process may run
        let took = performance.now() - started;
        await settle(ticket);
        if (backend.traits.provider === "dawn") took = performance.now() - started; // there only `settle` waits
        if (i > 0) best = Math.min(best, took); // the first one warms up
      }
      return best / 1000;
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      return NaN; // the device is full to the brim: nothing is compared
    } finally {
      buffers.forEach((buffer) => backend.release(buffer));
    }
  }

  /** Back and forth with the next rank of the ring and with the one before; the quicker of the two. */
  async #timeMessages(): Promise<number> {
    const { world } = this.#options, group = world.group("nettest"), { ranks, index } = group, count = ranks.length;
    const words = new Float32Array(messageWords);
    let best = Infinity;
    // Links are tested in turn, so that no rank is busy with two: even ones, odd ones, and the one that closes a ring of odd size.
    for (const phase of [0, 1, 2]) {
      const phaseOf = (link: number) => count % 2 === 1 && link === count - 1 ? 2 : link % 2;
      const forward = phaseOf(index) === phase && count > 1 && (count > 2 || index === 0);
      const before = (index + count - 1) % count, backward = phaseOf(before) === phase && (count > 2 || index === 1);
      await group.barrier();
      for (let i = 0; i <= repeats; i++) {
        const started = performance.now();
        if (forward) {
          await group.send((index + 1) % count, words);
          await group.receive((index + 1) % count, words);
        } else if (backward) {
          await group.receive(before, words);
          await group.send(before, words);
        } else break;
        if (i > 0) best = Math.min(best, performance.now() - started);
      }
    }
    return Number.isFinite(best) ? best / 1000 : 0;
  }
}

const milliseconds = (seconds: number) => `${(seconds * 1000).toPrecision(3)} ms`;
