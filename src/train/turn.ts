/**
 * Ranks that share a GPU take turns (unless `runtime.gpu_turns` is false): one computes the gradients of all its
 * micro-batches, then the next. A GPU that works for several processes at once goes from one to the other in slices and
 * loses time at each change; and the gradients of those who are through come back, and are summed, while the next one
 * computes. It changes no bit. Where processors compute, in software, each rank may have its own: all compute at once,
 * unless it is `always`.
 *
 * What is handed on is a message, so that a rank that fails in its turn ends the others' waiting as any failure does.
 */
import type { ReadTicket } from "../backend/backend.ts";
import type { Group } from "../comm/collectives/communicator.ts";
import { messagesLeave, type Wait } from "../graph/program.ts";
import type { Model } from "./model.ts";

/** The ranks that compute one after the other, this one among them; nothing where it computes when it likes. */
export const turnsOf = ({ config, world, program }: Pick<Model, "config" | "world" | "program">): Group | undefined =>
  config.runtime.gpu_turns === "always" || (config.runtime.gpu_turns && !program.backend.traits.software)
    ? world.device
    : undefined;

/** One rank's turn in one step. */
export class Turn {
  #over = false;
  #going: Promise<void> = Promise.resolve();
  readonly #word = new Float32Array(1);

  /** @param group ranks that share a GPU; none where this one has its own */
  constructor(readonly group: Group | undefined) {}

  /** Whether another rank is to compute before this one. */
  get waits(): boolean {
    return this.group !== undefined && this.group.index > 0;
  }

  /** Whether another rank waits for this one. */
  get awaited(): boolean {
    return this.group !== undefined && !this.#over && this.group.index < this.group.ranks.length - 1;
  }

  /** Waits until this rank may compute. */
  *begin(): Generator<Wait, void> {
    if (!this.waits) return;
    const came = this.group!.receive(this.group!.index - 1, this.#word);
    yield { ready: () => came };
  }

  /** The next rank may, as soon as the device is through with this one's work. @param computed a read-back that tells */
  *handOn(computed: () => ReadTicket): Generator<Wait, void> {
    if (!this.awaited) return;
    const ticket = computed();
    yield ticket;
    ticket.take();
    this.#over = true;
    this.#going = this.group!.send(this.group!.index + 1, this.#word);
    this.#going.catch(() => {}); // told by `end`
    yield messagesLeave;
  }

  /** Waits until the next rank has heard of it. */
  *end(): Generator<Wait, void> {
    yield { ready: () => this.#going };
  }
}
