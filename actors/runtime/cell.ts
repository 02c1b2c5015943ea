/** One living actor: its mailbox, one message at a time, timers, watches, stop and crash. */
import { type ActorSpec, type AnyDefinition, type Context, stop } from "./actor.ts";
import { type AnyProtocol, describeIssues, kindOf, parseFields, parseMessage, type Reply } from "./protocol.ts";
import { AskError, crashed, describeReason, Ended, type Reason, stopped } from "./reason.ts";
import { type Answerer, type Cancel, makeRef, type Ref, type Target, targetOf } from "./ref.ts";
import type { Runtime } from "./runtime.ts";
import type { Busy } from "./scheduler.ts";

/** What a forwarding actor's handler gets. */
export interface Forwarded {
  readonly kind: "forwarded";
  readonly message: unknown;
  readonly answerer: Answerer | undefined;
}

/** One message in a mailbox; `read` runs in the actor's turn, so that what it throws is the actor's crash. */
interface Envelope {
  readonly message: unknown;
  /** A command from outside is missed when the actor ends; its own messages are not, and an ask has its answerer. */
  readonly missed: boolean;
  read(): unknown;
}

// deno-lint-ignore no-explicit-any -- each actor sees its own types
type AnyContext = Context<AnyProtocol, any>;

/** A living actor. */
export class Cell implements Target, Busy {
  readonly ref: Ref;
  waits = 0;
  #status: "starting" | "running" | "stopping" | "ended" = "starting";
  #state: unknown;
  #hasState = false;
  #queued = false;
  /** Resolves when the handler in flight returns. */
  #inFlight: PromiseWithResolvers<void> | undefined;
  #reason: Reason = stopped;
  readonly #mailbox: Envelope[] = [];
  readonly #children = new Map<string, Cell>();
  readonly #watchers = new Set<(reason: Reason) => void>();
  readonly #cancels = new Set<Cancel>();
  readonly #waiting = new Set<(error: Error) => void>();
  readonly #unanswered = new Map<Answerer, unknown>();
  readonly #abort = new AbortController();
  readonly #started = Promise.withResolvers<void>();
  readonly #ended = Promise.withResolvers<Reason>();
  readonly #context: AnyContext;

  constructor(
    readonly runtime: Runtime,
    readonly name: string,
    readonly spec: ActorSpec,
    readonly onEnd: () => void,
  ) {
    this.#started.promise.catch(() => {});
    this.ref = makeRef(this, runtime.ask);
    this.#context = this.#makeContext();
  }

  get #alive(): boolean {
    return this.#status === "starting" || this.#status === "running";
  }

  /** Resolves when the first state is made, rejects when the actor ended before that. */
  get started(): Promise<void> {
    return this.#started.promise;
  }

  begin(): void {
    this.#wake();
  }

  deliver(message: unknown, answerer?: Answerer): void {
    if (!this.#alive) return this.runtime.undeliverable(this.name, message, answerer, this.#reason);
    const { protocol, behavior } = this.spec;
    if (behavior.forwards) {
      const forwarded: Forwarded = { kind: "forwarded", message, answerer: this.#track(message, answerer) };
      return this.#enqueue({ message, missed: answerer === undefined, read: () => forwarded });
    }
    const parsed = parseMessage(protocol, message, answerer !== undefined);
    if (!parsed.ok) {
      if (answerer === undefined) return this.runtime.deadLetter(this.name, message, parsed.problem);
      return answerer.reject(new AskError("invalid", `ask to "${this.name}" refused: ${parsed.problem}`));
    }
    const tracked = this.#track(message, answerer);
    const whole = tracked === undefined ? parsed.message : { ...parsed.message, reply: this.#reply(message, tracked) };
    this.#enqueue({ message, missed: answerer === undefined, read: () => whole });
  }

  watch(listener: (reason: Reason) => void): Cancel {
    if (this.#status === "ended") return this.runtime.soon(() => listener(this.#reason));
    this.#watchers.add(listener);
    return () => this.#watchers.delete(listener);
  }

  stop(): Promise<Reason> {
    if (this.#alive) this.#end(stopped);
    return this.#ended.promise;
  }

  /** Remembers that somebody waits, so that the actor's end rejects what it left unanswered. */
  #track(message: unknown, answerer: Answerer | undefined): Answerer | undefined {
    if (answerer === undefined) return undefined;
    const tracked: Answerer = {
      resolve: (value) => this.#unanswered.delete(tracked) && answerer.resolve(value),
      reject: (error) => this.#unanswered.delete(tracked) && answerer.reject(error),
    };
    this.#unanswered.set(tracked, message);
    return tracked;
  }

  #reply(message: unknown, answerer: Answerer): Reply<unknown> {
    const kind = kindOf(message);
    let answered = false;
    const once = () => {
      if (answered) throw new Error(`Cannot reply to "${kind}": it has been answered`);
      answered = true;
    };
    const reply = (value: unknown) => {
      const result = this.spec.protocol.requests[kind].reply.safeParse(value);
      if (!result.success) {
        throw new TypeError(`Cannot reply to "${kind}": the reply is malformed: ${describeIssues(result.error)}`);
      }
      once();
      answerer.resolve(result.data);
    };
    return Object.assign(reply, {
      refuse: (reason: string) => {
        once();
        answerer.reject(new AskError("refused", `ask "${kind}" to "${this.name}" refused: ${reason}`, reason));
      },
    });
  }

  /** Queues a message of the actor's own making. */
  #enqueueOwn(make: () => unknown): void {
    const read = () => {
      const { definition } = this.spec.behavior;
      const parsed = parseFields({ ...definition.protocol.commands, ...definition.internal }, make());
      if (!parsed.ok) throw new TypeError(`Cannot send to self: ${parsed.problem}`);
      return parsed.message;
    };
    this.#enqueue({ message: undefined, missed: false, read });
  }

  #enqueue(envelope: Envelope): void {
    if (!this.#alive) return;
    this.#mailbox.push(envelope);
    this.#wake();
  }

  #wake(): void {
    if (this.#queued || this.#inFlight !== undefined || !this.#alive) return;
    if (this.#status === "running" && this.#mailbox.length === 0) return;
    this.#queued = true;
    this.runtime.scheduler.post(() => this.#turn());
  }

  #turn(): void {
    this.#queued = false;
    if (!this.#alive) return;
    const { definition } = this.spec.behavior;
    const first = this.#status === "starting";
    this.#inFlight = Promise.withResolvers();
    let result: unknown;
    try {
      result = first
        ? definition.initial(this.#context)
        : definition.handle(this.#state, this.#mailbox.shift()!.read() as never, this.#context);
    } catch (error) {
      return this.#failed(error);
    }
    if (!(result instanceof Promise)) return this.#done(result);
    this.runtime.scheduler.busy.add(this);
    result.then((value) => this.#done(value), (error) => this.#failed(error));
  }

  #landed(): void {
    this.runtime.scheduler.busy.delete(this);
    this.#inFlight?.resolve();
    this.#inFlight = undefined;
  }

  #done(result: unknown): void {
    this.#landed();
    if (this.#status === "ended") return; // abandoned
    if (result !== stop) {
      this.#state = result;
      this.#hasState = true;
    }
    if (this.#status === "stopping") return; // #end goes on from here
    if (this.#status === "starting") {
      this.#status = "running";
      this.#started.resolve();
    }
    if (result === stop) this.#end(stopped);
    else this.#wake();
  }

  #failed(error: unknown): void {
    this.#landed();
    const reason = error instanceof Ended ? error.reason : crashed(error);
    const asked = error instanceof AskError && error.failure === "stopped" && this.#abort.signal.aborted;
    if (!asked) this.runtime.log(this.name, describeReason(reason));
    if (this.#alive) this.#end(reason);
  }

  async #end(reason: Reason): Promise<void> {
    const { definition, order = [] } = this.spec.behavior;
    this.#status = "stopping";
    this.#reason = reason;
    const limit = definition.stopTimeoutMs ?? 5000;
    const cancelForce = limit === Infinity ? () => {} : this.runtime.scheduler.clock.after(limit, () => {
      this.runtime.log(this.name, `did not stop within ${limit} ms and is abandoned`);
      this.#finish();
    });
    this.#abort.abort();
    for (const cancel of this.#cancels) cancel();
    for (const reject of [...this.#waiting]) reject(new AskError("stopped", `"${this.name}" is stopping`));
    if (this.#inFlight !== undefined) await this.#inFlight.promise;
    // Children stop in reverse, one by one: a later one may need an earlier one to the last.
    const children = [...this.#children.values()];
    const place = (child: Cell) => order.indexOf(child.name.slice(this.name.length + 1));
    if (order.length > 0) children.sort((a, b) => place(a) - place(b));
    for (const child of children.reverse()) await child.stop();
    if (this.#hasState && definition.stopped !== undefined) await this.#giveBack(definition.stopped);
    cancelForce();
    this.#finish();
  }

  async #giveBack(hook: NonNullable<AnyDefinition["stopped"]>): Promise<void> {
    const busy: Busy = { name: this.name, waits: 0 };
    this.runtime.scheduler.busy.add(busy);
    try {
      await hook(this.#state, this.#reason);
    } catch (error) {
      this.runtime.log(this.name, `failed to clean up: ${describeReason(crashed(error))}`);
    }
    this.runtime.scheduler.busy.delete(busy);
  }

  #finish(): void {
    if (this.#status === "ended") return;
    this.#status = "ended";
    const reason = this.#reason;
    this.onEnd();
    for (const child of this.#children.values()) child.stop();
    for (const { message, missed } of this.#mailbox.splice(0)) {
      if (missed) this.runtime.undeliverable(this.name, message, undefined, reason);
    }
    for (const [answerer, message] of [...this.#unanswered]) {
      this.runtime.undeliverable(this.name, message, answerer, reason);
    }
    for (const watcher of [...this.#watchers]) watcher(reason);
    this.#started.reject(new Ended(reason));
    this.#ended.resolve(reason);
  }

  /** Awaits what other actors or timers bring about; gives up when this actor stops. */
  async #wait<T>(promise: Promise<T>): Promise<T> {
    if (!this.#alive) throw new AskError("stopped", `"${this.name}" is stopping`);
    const gaveUp = Promise.withResolvers<never>();
    this.#waiting.add(gaveUp.reject);
    this.waits++;
    try {
      return await Promise.race([promise, gaveUp.promise]);
    } finally {
      this.waits--;
      this.#waiting.delete(gaveUp.reject);
    }
  }

  #later(milliseconds: number, message: unknown, again: boolean): Cancel {
    if (!(milliseconds >= 0) || (again && milliseconds === 0)) {
      throw new RangeError(`Cannot set timer: it takes ${again ? "more than 0" : "0 or more"} ms, not ${milliseconds}`);
    }
    let cancelTimer: Cancel = () => {};
    const cancel = () => {
      cancelTimer();
      this.#cancels.delete(cancel);
    };
    const arm = () => {
      cancelTimer = this.runtime.scheduler.clock.after(milliseconds, () => {
        this.#enqueueOwn(() => message);
        if (again) arm();
        else this.#cancels.delete(cancel);
      });
    };
    if (this.#alive) {
      this.#cancels.add(cancel);
      arm();
    }
    return cancel;
  }

  #makeContext(): AnyContext {
    const { runtime } = this;
    return {
      self: this.ref,
      name: this.name,
      signal: this.#abort.signal,
      runtime,
      sendSelf: (message) => this.#enqueueOwn(() => message),
      ask: (ref, request, options) => this.#wait(runtime.ask(targetOf(ref), request, options)) as Promise<never>,
      spawn: (name, spec) => {
        if (!this.#alive) throw new Error(`Cannot start actor "${name}": "${this.name}" is stopping`);
        return runtime.spawnUnder(this.#children, this.name, name, spec).ref as unknown as Ref<typeof spec.protocol>;
      },
      started: (child) => this.#wait(runtime.cellOf(child).started),
      stop: async (child) => void await this.#wait(runtime.cellOf(child).stop()),
      watch: (ref, message) => {
        const cancel = targetOf(ref).watch((reason) => {
          this.#cancels.delete(cancel);
          this.#enqueueOwn(() => message(reason));
        });
        this.#cancels.add(cancel);
        return cancel;
      },
      after: (milliseconds, message) => this.#later(milliseconds, message, false),
      every: (milliseconds, message) => this.#later(milliseconds, message, true),
      now: () => runtime.now(),
      log: (text) => runtime.log(this.name, text),
      lookup: (protocol, name) => runtime.lookup(protocol, name),
    };
  }
}
