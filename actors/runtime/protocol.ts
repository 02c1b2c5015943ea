/**
 * Protocols: what may be said to an actor. Commands want no answer, requests carry the type of theirs. A protocol is
 * data (zod schemas by message kind); the message union is inferred from it, so there is one place to read and change.
 */
import { z } from "zod";

// Every thread of every process would generate parsers anew, which takes longer than a run's few small messages do without.
z.config({ jitless: true });

/** The fields of one message, without its `kind`. */
export type Fields = Readonly<Record<string, z.ZodType>>;
/** A request: what is asked, and what is answered. */
export interface RequestShape {
  readonly ask: Fields;
  readonly reply: z.ZodType;
}

export interface Protocol<
  C extends Record<string, Fields> = Record<string, Fields>,
  R extends Record<string, RequestShape> = Record<string, RequestShape>,
> {
  readonly commands: C;
  readonly requests: R;
}
// deno-lint-ignore no-explicit-any -- stands for every protocol; a concrete one restores the types
export type AnyProtocol = Protocol<any, any>;

/** Answers the request it came with: once, with a value of the reply's type, or by refusing. */
export interface Reply<T> {
  (value: T): void;
  /** Answers a request that cannot be met; the asker's promise rejects with this sentence. */
  refuse(reason: string): void;
}

// zod's type of an object without fields admits no field at all, not even `kind`.
type Sent<F extends Fields> = keyof F extends never ? unknown : z.input<z.ZodObject<F>>;
type Received<F extends Fields> = keyof F extends never ? unknown : z.output<z.ZodObject<F>>;

/** What may be sent, as the sender writes it (fields with defaults may be left out). */
export type Command<P extends AnyProtocol> = {
  [K in keyof P["commands"] & string]: { kind: K } & Sent<P["commands"][K]>;
}[keyof P["commands"] & string];
/** What may be asked, as the asker writes it. */
export type Request<P extends AnyProtocol, K extends keyof P["requests"]> =
  & { kind: K }
  & Sent<P["requests"][K]["ask"]>;
/** The answer to request `K`. */
export type Answer<P extends AnyProtocol, K extends keyof P["requests"]> = z.output<P["requests"][K]["reply"]>;

/** What the handler receives: commands, and requests with the `reply` that answers them. */
export type Message<P extends AnyProtocol> =
  | { [K in keyof P["commands"] & string]: { kind: K } & Received<P["commands"][K]> }[keyof P["commands"] & string]
  | {
    [K in keyof P["requests"] & string]:
      & { kind: K; reply: Reply<z.input<P["requests"][K]["reply"]>> }
      & Received<P["requests"][K]["ask"]>;
  }[keyof P["requests"] & string];
/** An actor's private messages: only it and its timers can send them. */
export type Private<I extends Record<string, Fields>> = {
  [K in keyof I & string]: { kind: K } & Received<I[K]>;
}[keyof I & string];

/**
 * Declares a protocol.
 *
 * @throws {TypeError} when a name is both a command and a request, or a field takes the name `kind` or `reply`.
 *
 * @example
 * ```ts
 * import { protocol } from "./mod.ts";
 * import { z } from "zod";
 * export const counter = protocol({
 *   commands: { add: { amount: z.number() } },
 *   requests: { read: { ask: {}, reply: z.number() } },
 * });
 * ```
 */
export function protocol<
  const C extends Record<string, Fields> = Record<never, never>,
  const R extends Record<string, RequestShape> = Record<never, never>,
>(shape: { commands?: C; requests?: R }): Protocol<C, R> {
  const { commands = {} as C, requests = {} as R } = shape;
  for (const kind of Object.keys(requests)) {
    if (Object.hasOwn(commands, kind)) {
      throw new TypeError(`Cannot declare protocol: "${kind}" is both a command and a request`);
    }
  }
  for (const [kind, fields] of [...Object.entries(commands), ...askFields(requests)]) {
    for (const reserved of ["kind", "reply"]) {
      if (Object.hasOwn(fields, reserved)) {
        throw new TypeError(`Cannot declare protocol: message "${kind}" has a field "${reserved}", a reserved name`);
      }
    }
  }
  return { commands, requests };
}

function askFields(requests: Record<string, RequestShape>): [string, Fields][] {
  return Object.entries(requests).map(([kind, { ask }]) => [kind, ask]);
}

const compiled = new WeakMap<Fields, z.ZodType>();

/** The message's schema: unknown fields are errors, since a misspelt optional field would else be lost in silence. */
function schemaOf(kind: string, fields: Fields): z.ZodType {
  let schema = compiled.get(fields);
  if (schema === undefined) {
    schema = z.strictObject({ ...fields, kind: z.literal(kind) });
    compiled.set(fields, schema);
  }
  return schema;
}

export function kindOf(message: unknown): string {
  const kind = (message as { kind?: unknown } | null | undefined)?.kind;
  return typeof kind === "string" ? kind : "(no kind)";
}

/** A message as its schema reads it, or the sentence that says why it is not one. */
export type Parsed = { ok: true; message: object } | { ok: false; problem: string };

/** Checks a message against the named fields of its kind. */
export function parseFields(table: Record<string, Fields>, message: unknown): Parsed {
  const kind = kindOf(message);
  if (!Object.hasOwn(table, kind)) {
    return {
      ok: false,
      problem: `unknown message "${kind}": expected one of ${Object.keys(table).join(", ") || "none"}`,
    };
  }
  const result = schemaOf(kind, table[kind]).safeParse(message);
  if (result.success) return { ok: true, message: result.data as object };
  return { ok: false, problem: `malformed message "${kind}": ${describeIssues(result.error)}` };
}

/** Checks what came from outside: a command, or (when an answer is awaited) a request. */
export function parseMessage(of: AnyProtocol, message: unknown, asked: boolean): Parsed {
  const kind = kindOf(message);
  if (asked && Object.hasOwn(of.commands, kind)) {
    return { ok: false, problem: `"${kind}" is a command and has no answer: send it` };
  }
  if (!asked && Object.hasOwn(of.requests, kind)) return { ok: false, problem: `"${kind}" is a request: ask it` };
  return parseFields(asked ? Object.fromEntries(askFields(of.requests)) : of.commands, message);
}

export function describeIssues(error: z.ZodError): string {
  return error.issues.map(({ path, message }) => path.length > 0 ? `${path.join(".")}: ${message}` : message).join(
    "; ",
  );
}
