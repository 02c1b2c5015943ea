/** Messages as bytes: JSON, with tags for what JSON loses (NaN, -0, undefined, bigint, bytes). */

/** Rebuilds a value. `visit` returns `{value}` to put in place of what it saw, or `undefined` to look inside. */
export function rebuild(value: unknown, visit: (value: unknown) => { value: unknown } | undefined): unknown {
  const replaced = visit(value);
  if (replaced !== undefined) return replaced.value;
  if (Array.isArray(value)) return value.map((item) => rebuild(item, visit));
  if (!isPlain(value)) return value;
  // fromEntries defines keys, so that "__proto__" stays a key.
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, rebuild(item, visit)]));
}

function isPlain(value: unknown): value is Record<string, unknown> {
  if (typeof value !== "object" || value === null) return false;
  const prototype = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null;
}

/** @throws {TypeError} on what cannot travel as bytes: functions, symbols, class instances, shared memory. */
export function encodeJson(value: unknown): Uint8Array<ArrayBuffer> {
  const tagged = rebuild(value, (item) => {
    if (item === undefined) return { value: { $: "undefined" } };
    if (typeof item === "number" && (!Number.isFinite(item) || Object.is(item, -0))) {
      return { value: { $: "number", text: Object.is(item, -0) ? "-0" : String(item) } };
    }
    if (typeof item === "bigint") return { value: { $: "bigint", text: String(item) } };
    if (item instanceof Uint8Array) return { value: { $: "bytes", text: item.slice().toBase64() } };
    if (isPlain(item)) {
      if (Object.hasOwn(item, "$")) throw new TypeError(`Cannot encode message: the field name "$" is reserved`);
    } else if (typeof item === "function" || typeof item === "symbol") {
      throw new TypeError(`Cannot encode message: a ${typeof item} cannot travel as bytes`);
    } else if (typeof item === "object" && item !== null && !Array.isArray(item)) {
      throw new TypeError(`Cannot encode message: a ${item.constructor?.name} cannot travel as bytes`);
    }
    return undefined;
  });
  return new TextEncoder().encode(JSON.stringify(tagged));
}

/** @throws {SyntaxError} when the bytes are not what {@linkcode encodeJson} makes. */
export function decodeJson(bytes: Uint8Array): unknown {
  return rebuild(JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes)), (item) => {
    if (!isPlain(item) || !Object.hasOwn(item, "$")) return undefined;
    const text = String(item.text);
    if (item.$ === "undefined") return { value: undefined };
    if (item.$ === "number") return { value: Number(text) };
    if (item.$ === "bigint") return { value: BigInt(text) };
    if (item.$ === "bytes") return { value: Uint8Array.fromBase64(text) };
    throw new SyntaxError(`unknown tag ${JSON.stringify(item.$)}`);
  });
}
