/** The runtime: actors by name, asks, what reaches nobody, and the end of all. */
import type { ActorSpec } from "./actor.ts";
import { Cell } from "./cell.ts";
import { type AnyProtocol, kindOf } from "./protocol.ts";
import { AskError, describeReason, Ended, type Reason } from "./reason.ts";
import { type Answerer, type AskOptions, type Cancel, makeRef, type Ref, type Target, targetOf } from "./ref.ts";
import { realScheduler, type Scheduler, type TestScheduler, testScheduler } from "./scheduler.ts";

/** A message that reached nobody. */
export interface DeadLetter {
  /** Name of the actor it was for. */
  readonly actor: string;
  readonly kind: string;
  readonly reason: string;
}

export interface RuntimeOptions {
  /** @default {realScheduler()} */
  readonly scheduler?: Scheduler;
  /** @default writes a line to the log */
  readonly onDeadLetter?: (letter: DeadLetter) => void;
  /** Crashes, restarts and what actors log. @default writes to standard error */
  readonly log?: (actor: string, text: string) => void;
  /** @default {5000} */
  readonly askTimeoutMs?: number;
}

export function createRuntime(options: RuntimeOptions = {}): Runtime {
  return new Runtime(options);
}

/** A runtime in which nothing moves until told to, and everything repeats. */
export type TestRuntime = Runtime & Pick<TestScheduler, "settle" | "advance">;

/** Several may share one scheduler (`{scheduler: other.scheduler}`), to play several hosts in one thread. */
export function testRuntime(options: RuntimeOptions & { scheduler?: TestScheduler } = {}): TestRuntime & {
  readonly scheduler: TestScheduler;
} {
  const scheduler = options.scheduler ?? testScheduler();
  const runtime = new Runtime({ log: () => {}, ...options, scheduler });
  return Object.assign(runtime, { scheduler, settle: scheduler.settle, advance: scheduler.advance });
}

export class Runtime {
  readonly scheduler: Scheduler;
  readonly log: (actor: string, text: string) => void;
  readonly #onDeadLetter: (letter: DeadLetter) => void;
  readonly #askTimeoutMs: number;
  readonly #top = new Map<string, Cell>();
  readonly #cells = new Map<string, Cell>();
  readonly #asks = new Set<(error: AskError) => void>();
  readonly #closers = new Set<() => void | Promise<void>>();
  #stopped = false;

  constructor(options: RuntimeOptions) {
    this.scheduler = options.scheduler ?? realScheduler();
    this.log = options.log ?? ((actor, text) => console.error(`${actor}: ${text}`));
    this.#onDeadLetter = options.onDeadLetter ??
      (({ actor, kind, reason }) => this.log(actor, `dead letter "${kind}": ${reason}`));
    this.#askTimeoutMs = options.askTimeoutMs ?? 5000;
  }

  now(): number {
    return this.scheduler.clock.now();
  }

  /** Starts an actor. Throws when the name is taken by a living one. */
  spawn<P extends AnyProtocol>(name: string, spec: ActorSpec<P>): Ref<P> {
    return this.spawnUnder(this.#top, undefined, name, spec).ref as Ref<P>;
  }

  /** A reference by full name (`parent/child`), resolved at each use: it outlives restarts. */
  lookup<P extends AnyProtocol>(_protocol: P, name: string): Ref<P> {
    return makeRef<P>({
      name,
      deliver: (message, answerer) => {
        const cell = this.#cells.get(name);
        if (cell !== undefined) cell.deliver(message, answerer);
        else this.undeliverable(name, message, answerer, { kind: "absent" });
      },
      watch: (listener) => this.#cells.get(name)?.watch(listener) ?? this.soon(() => listener({ kind: "absent" })),
    }, this.ask);
  }

  /** Resolves when the actor's first state is made (a supervisor's: when its children have started); rejects when it ends before. */
  started(ref: Ref): Promise<void> {
    return holdOpen(this.cellOf(ref).started);
  }

  /** Resolves when the actor has ended, with the reason. Keeps the program alive until then. */
  terminated(ref: Ref): Promise<Reason> {
    return holdOpen(new Promise((resolve) => targetOf(ref).watch(resolve)));
  }

  /** Stops one actor and its children; resolves when it has ended. */
  async stopActor(ref: Ref): Promise<void> {
    await holdOpen(this.cellOf(ref).stop());
  }

  /** Stops every actor, the last started first, then the connections. Nothing is left behind. */
  async stop(): Promise<void> {
    this.#stopped = true;
    for (const cell of [...this.#top.values()].reverse()) await holdOpen(cell.stop());
    for (const fail of [...this.#asks]) fail(new AskError("stopped", "ask got no answer: the runtime has stopped"));
    await holdOpen(Promise.all([...this.#closers].map((close) => close())));
  }

  // The rest serves the files beside this one.

  spawnUnder(siblings: Map<string, Cell>, parent: string | undefined, name: string, spec: ActorSpec): Cell {
    if (this.#stopped) throw new Error(`Cannot start actor "${name}": the runtime has stopped`);
    if (name === "" || name.includes("/")) {
      throw new RangeError(`Cannot start actor: a name is not empty and has no "/": current value is "${name}"`);
    }
    const path = parent === undefined ? name : `${parent}/${name}`;
    if (this.#cells.has(path)) throw new Error(`Cannot start actor "${path}": the name is taken`);
    const cell = new Cell(this, path, spec, () => {
      siblings.delete(name);
      this.#cells.delete(path);
    });
    siblings.set(name, cell);
    this.#cells.set(path, cell);
    cell.begin();
    return cell;
  }

  cellOf(ref: Ref): Cell {
    const target = targetOf(ref);
    const cell = target instanceof Cell ? target : this.#cells.get(target.name);
    if (cell === undefined) throw new TypeError(`Cannot control actor "${ref.name}": it is not in this runtime`);
    return cell;
  }

  /** Runs soon, but not before this returns, unless cancelled. */
  soon(run: () => void): Cancel {
    let cancelled = false;
    queueMicrotask(() => cancelled || run());
    return () => cancelled = true;
  }

  /** Runs when the runtime stops, after the actors. */
  onStop(close: () => void | Promise<void>): Cancel {
    this.#closers.add(close);
    return () => this.#closers.delete(close);
  }

  deadLetter(actor: string, message: unknown, reason: string): void {
    this.#onDeadLetter({ actor, kind: kindOf(message), reason });
  }

  /** The fate of a message for an actor that has ended: an ask rejects at once, a command is a dead letter. */
  undeliverable(actor: string, message: unknown, answerer: Answerer | undefined, reason: Reason): void {
    if (answerer === undefined) return this.deadLetter(actor, message, describeReason(reason));
    const failure = reason.kind === "lost" ? "lost" : "stopped";
    const text = `ask "${kindOf(message)}" to "${actor}" failed: ${describeReason(reason)}`;
    answerer.reject(new AskError(failure, text, undefined, { cause: new Ended(reason) }));
  }

  readonly ask = (target: Target, request: unknown, options: AskOptions = {}): Promise<unknown> => {
    const timeoutMs = options.timeoutMs ?? this.#askTimeoutMs;
    if (!(timeoutMs > 0)) {
      throw new RangeError(`Cannot ask: timeoutMs must be above 0: current value is ${timeoutMs}`);
    }
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    promise.catch(() => {}); // whoever drops the promise drops the failure: it must not end the program
    const began = this.now();
    const fail = (error: AskError) => {
      finish();
      reject(error);
    };
    const cancel = timeoutMs === Infinity ? () => {} : this.scheduler.clock.after(timeoutMs, () => {
      const waited = Math.round(this.now() - began);
      fail(new AskError("timeout", `ask "${kindOf(request)}" to "${target.name}" got no answer in ${waited} ms`));
    });
    const finish = () => {
      cancel();
      this.#asks.delete(fail);
    };
    this.#asks.add(fail);
    const answer = (value: unknown) => {
      finish();
      resolve(value);
    };
    target.deliver(request, { resolve: answer, reject: fail });
    return promise;
  };
}

/**
 * Keeps the program alive until the promise settles. Channels, workers and processes do not, lest they outlast a finished
 * program; and a promise alone does not either.
 */
export async function holdOpen<T>(promise: Promise<T>): Promise<T> {
  const hold = setInterval(() => {}, 2 ** 30);
  try {
    return await promise;
  } finally {
    clearInterval(hold);
  }
}
