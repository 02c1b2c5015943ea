/**
 * Where a mixture's choice of experts hangs by the last bits of float32: two scores of a router so near to each other that
 * another order of sums turns them round. A training that chooses the other expert there is as right, and goes another way.
 */
import type { Backend, Command, CommandList, Range, ReadTicket } from "../backend/backend.ts";
import type { Kernel } from "../../kernels/kernel.ts";

/** The kernel by which routers choose; it reads their scores first. */
export const chooseName = "moe.choose";

/** The nearest that an expert which was not chosen came to one that was, in one step. */
export interface NarrowChoice {
  /** Between the scores of the two, of which the higher one is `score`. */
  readonly apart: number;
  readonly score: number;
  /** Largest size of the token's scores, against which `apart` is small or not. */
  readonly size: number;
  /** A micro-batch of this rank, and a row of what this rank holds of it. */
  readonly microBatch: number;
  readonly row: number;
  /** How many rows it holds. */
  readonly rows: number;
  /** Layer, as `layerOf` tells it. */
  readonly layer: number;
  readonly chosen: number;
  readonly other: number;
}

/** The last expert that is chosen of a token and the first that is not: where in `scores` they are, and how far apart. */
function boundary(
  scores: Float32Array,
  choices: number,
): Pick<NarrowChoice, "apart" | "score" | "size" | "chosen" | "other"> {
  // As the kernel chooses: of equal scores the first.
  const order = [...scores.keys()].sort((a, b) => scores[b]! - scores[a]! || a - b);
  const [chosen, other] = [order[choices - 1]!, order[choices]!];
  const score = scores[chosen]!, size = Math.max(...scores.map(Math.abs));
  return { apart: score - scores[other]!, score, size, chosen, other };
}

/**
 * The narrowest choice among the tokens that a router saw.
 *
 * @param scores `[tokens, experts]`
 * @returns nothing where every expert is chosen, or no score is a number
 *
 * @example
 * ```ts
 * import { narrowest } from "./narrow_choices.ts";
 * const scores = Float32Array.of(4, 1, 2, 0, 3, 3.25);
 * const { row, chosen, other, apart } = narrowest(scores, { experts: 3, choices: 1 })!;
 * console.assert(row === 1 && chosen === 2 && other === 1 && apart === 0.25);
 * ```
 */
export function narrowest(
  scores: Float32Array,
  { experts, choices }: { readonly experts: number; readonly choices: number },
): Omit<NarrowChoice, "layer" | "microBatch"> | undefined {
  if (choices >= experts) return undefined;
  const rows = scores.length / experts;
  let found: Omit<NarrowChoice, "layer" | "microBatch"> | undefined;
  for (let row = 0; row < rows; row++) {
    const each = boundary(scores.subarray(row * experts, (row + 1) * experts), choices);
    if (each.apart < (found?.apart ?? Infinity)) found = { ...each, row, rows };
  }
  return found;
}

/** A router's dispatch, what it reads, and a copy of it that stays until the host has read it. */
interface Kept {
  readonly kernel: Kernel;
  readonly scores: Range;
  readonly copy: Range;
}

/** A command list, cut before each router's dispatch where scores may have to be exchanged. */
interface Watched {
  readonly parts: readonly { readonly list: CommandList; readonly kept: readonly Kept[] }[];
}

/**
 * A backend that keeps what the routers of a program see, whatever the program is and wherever it computes. It can have one
 * token go to the other of the two experts of a narrow choice: their scores are exchanged before the router chooses.
 */
export class RouterWitness implements Disposable {
  readonly backend: Backend;
  readonly #inner: Backend;
  readonly #watched = new Map<CommandList, Watched>();
  readonly #cuts: boolean;
  /** Times that each router ran since the last `take`. */
  #passes = new Map<Kernel, number>();
  #reads: { readonly kept: readonly Kept[]; readonly ticket: ReadTicket }[] = [];
  #other: { readonly kernel: Kernel; readonly choice: NarrowChoice } | undefined;

  /**
   * @param backend does the work; it is not closed with this
   * @param options `chooses`: whether `chooseOther` is going to be called
   */
  constructor(backend: Backend, { chooses = false }: { readonly chooses?: boolean } = {}) {
    this.#inner = backend;
    this.#cuts = chooses;
    const own: Partial<Backend> = {
      prepare: (commands) => this.#prepare(commands),
      submit: (list) => this.#submit(list),
    };
    this.backend = new Proxy(backend, {
      get(target, key) {
        const value = own[key as keyof Backend] ?? Reflect.get(target, key, target);
        return typeof value === "function" && !(key in own) ? value.bind(target) : value;
      },
    });
  }

  async #prepare(commands: readonly Command[]): Promise<CommandList> {
    const parts: { commands: Command[]; kept: Kept[] }[] = [{ commands: [], kept: [] }];
    for (const command of commands) {
      const chooses = command.kind === "dispatch" && command.kernel.name === chooseName;
      if (chooses && this.#cuts) parts.push({ commands: [], kept: [] });
      const { commands: all, kept } = parts.at(-1)!;
      all.push(command);
      if (!chooses) continue;
      const scores = command.ranges[0]!, buffer = this.#inner.allocate(scores.bytes, "scores of a router");
      const copy = { buffer, offset: 0, bytes: scores.bytes };
      all.push({ kind: "copy", source: scores, target: copy });
      kept.push({ kernel: command.kernel, scores, copy });
    }
    const lists = [];
    for (const { commands: all, kept } of parts) lists.push({ list: await this.#inner.prepare(all), kept });
    const { list } = lists[0]!;
    if (parts.some(({ kept }) => kept.length > 0)) this.#watched.set(list, { parts: lists });
    return list;
  }

  #submit(list: CommandList): void {
    const watched = this.#watched.get(list);
    if (!watched) return this.#inner.submit(list);
    for (const { list: part, kept } of watched.parts) {
      for (const { kernel, scores } of kept) {
        const pass = this.#passes.get(kernel) ?? 0;
        this.#passes.set(kernel, pass + 1);
        if (this.#other?.kernel === kernel && this.#other.choice.microBatch === pass) this.#exchange(scores);
      }
      this.#inner.submit(part);
    }
    const kept = watched.parts.flatMap((part) => part.kept);
    this.#reads.push({ kept, ticket: this.#inner.read(kept.map(({ copy }) => copy)) });
  }

  #exchange({ buffer, offset, bytes }: Range): void {
    const { row, rows, chosen, other, score, apart } = this.#other!.choice, experts = bytes / 4 / rows;
    const put = (expert: number, value: number) =>
      this.#inner.upload({ buffer, offset: offset + 4 * (row * experts + expert), bytes: 4 }, Float32Array.of(value));
    const lower = score - apart;
    put(chosen, apart > 0 ? lower : below(lower));
    put(other, score);
  }

  /** Has the next pass of that micro-batch through that router choose the other expert. The step after has its own will again. */
  chooseOther(kernel: Kernel, choice: NarrowChoice): void {
    this.#other = { kernel, choice };
  }

  /**
   * The narrowest choice since the last call.
   *
   * @param layerOf the layer of a router's kernel; nothing for one that is not asked about, as that of a layer computed anew
   * @param sizes each token goes to `choices` of `experts`; passes after the first `microBatches` are not looked at
   */
  async take(
    layerOf: ReadonlyMap<Kernel, number>,
    sizes: { readonly experts: number; readonly choices: number; readonly microBatches: number },
  ): Promise<NarrowChoice | undefined> {
    const reads = this.#reads, passes = new Map<Kernel, number>();
    this.#reads = [];
    this.#passes = new Map();
    this.#other = undefined;
    let found: NarrowChoice | undefined;
    for (const { kept, ticket } of reads) {
      await ticket.ready();
      const taken = ticket.take();
      kept.forEach(({ kernel }, index) => {
        const layer = layerOf.get(kernel), microBatch = passes.get(kernel) ?? 0;
        passes.set(kernel, microBatch + 1);
        if (layer === undefined || microBatch >= sizes.microBatches) return;
        const { buffer, byteOffset, byteLength } = taken[index]!;
        const each = narrowest(new Float32Array(buffer, byteOffset, byteLength / 4), sizes);
        if (each && each.apart < (found?.apart ?? Infinity)) found = { ...each, layer, microBatch };
      });
    }
    return found;
  }

  /** Frees what was kept. The program is not to be run any more. */
  [Symbol.dispose](): void {
    for (const { parts } of this.#watched.values()) {
      for (const { kept } of parts) kept.forEach(({ copy }) => this.#inner.release(copy.buffer));
    }
    this.#watched.clear();
  }
}

/** The next lower `float32`. */
function below(value: number): number {
  const single = Float32Array.of(value), bits = new Int32Array(single.buffer);
  if (value === 0) return -(2 ** -149);
  bits[0] = bits[0]! + (value > 0 ? -1 : 1);
  return single[0]!;
}
