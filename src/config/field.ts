/**
 * What a field of the run record is: a zod schema and, in a registry beside it, the note that documents it and says
 * whether Troupe does it yet. The schema files are data; everything that reads them (checks, help, printing) walks
 * the schema and looks the notes up here.
 */
import { z } from "zod";
import { evaluateArithmetic } from "./arithmetic.ts";
import { parseBytes } from "./bytes.ts";

/** `refused`: the field is known and checked, but a value of the user's that asks for it stops the run. */
export type Status = "works" | "refused";

export interface FieldNote {
  readonly status: Status;
  /** What the field means: the documentation. */
  readonly help: string;
  /** Words for a default that depends on other fields; `derived.ts` holds the rule. */
  readonly derived?: string;
  /** A value that would work, for fields without a default. */
  readonly example?: unknown;
  /** For `refused`: this field means nothing, and may be written, while the field of this path has its default. */
  readonly onlyWith?: string;
  /** For `refused`: what serves the same end today. */
  readonly instead?: string;
  /** For `works`: the only values that do yet. */
  readonly only?: readonly unknown[];
  /** For `works`: why one value of the field is refused, or undefined for a value that works. */
  readonly refuse?: (value: unknown) => string | undefined;
  /** For `works`: said once when the user writes another value than the default. */
  readonly notice?: string;
}

export const fieldNotes = z.registry<FieldNote>();

type More = Omit<FieldNote, "status" | "help">;

function leaf<T extends z.ZodType>(status: Status, schema: T, help: string, more: More): T {
  fieldNotes.add(schema, { status, help, ...more });
  z.globalRegistry.add(schema, { description: help });
  return schema;
}

/** A field that does what it says. */
export function works<T extends z.ZodType>(schema: T, help: string, more: More = {}): T {
  return leaf("works", schema, help, more);
}

/** A field that is known but not built: only its default is accepted. */
export function refused<T extends z.ZodType>(schema: T, help: string, more: More = {}): T {
  return leaf("refused", schema, help, more);
}

/** Numbers may be written as arithmetic. Text that is none is left to the schema, which refuses it. */
function arithmetic(value: unknown): unknown {
  if (typeof value !== "string") return value;
  try {
    return evaluateArithmetic(value);
  } catch {
    return value;
  }
}

interface Range {
  readonly min?: number;
  readonly max?: number;
  /** Excludes the lower end. */
  readonly above?: number;
}

/** A whole number, also as arithmetic: `2**16`. */
export function int({ min, max }: Range = {}) {
  let schema = z.int();
  if (min !== undefined) schema = schema.min(min);
  if (max !== undefined) schema = schema.max(max);
  return z.preprocess(arithmetic, schema);
}

/** A number, also as arithmetic: `8/3`. */
export function float({ min, max, above }: Range = {}) {
  let schema = z.number();
  if (min !== undefined) schema = schema.min(min);
  if (above !== undefined) schema = schema.gt(above);
  if (max !== undefined) schema = schema.max(max);
  return z.preprocess(arithmetic, schema);
}

/** A number, or null for none. */
export function nullableFloat(range: Range = {}) {
  return z.preprocess(arithmetic, float(range).nullable());
}

/** An amount of memory, as a number of bytes or as text: `80GiB`; null for none. */
export function nullableBytes() {
  const read = (value: unknown) => typeof value === "string" ? parseBytes(value) ?? value : value;
  return z.preprocess(read, z.int().min(1).nullable());
}

/** A count of steps; null, `.inf` and "inf" all mean never, and null is what is kept, since it survives JSON. */
export function stepsOrNever() {
  const never = (value: unknown) => value === Infinity || value === "inf" ? null : arithmetic(value);
  return z.preprocess(never, z.int().min(1).nullable());
}

/** Text that a record may also leave empty or write as a bare number. */
export function looseText() {
  return z.preprocess((value) => value === null ? "" : typeof value === "number" ? String(value) : value, z.string());
}

export const bool = () => z.boolean();
export const text = () => z.string();
export const textOrNull = () => z.string().nullable();
/** Settings that are handed on as they are. */
export const anyMapping = () => z.record(z.string(), z.unknown());
