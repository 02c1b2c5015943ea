/** Walks the schema: which sections there are, which fields, and what a field takes. */
import { z } from "zod";
import { type FieldNote, fieldNotes } from "./field.ts";
import { configSchema } from "./schema/mod.ts";

export interface Field {
  readonly path: string;
  readonly schema: z.ZodType;
  readonly note: FieldNote;
}
export interface Section {
  readonly path: string;
  readonly help: string;
  /** In the order of the schema. */
  readonly entries: ReadonlyMap<string, Field | Section>;
}

export const isSection = (entry: Field | Section): entry is Section => "entries" in entry;

/** The whole record as a tree. Each leaf has a note; a schema without one must be a section. */
export const recordTree: Section = section("", configSchema);

function section(path: string, schema: z.ZodObject): Section {
  const entries = new Map<string, Field | Section>();
  for (const [key, child] of Object.entries(schema.shape) as [string, z.ZodType][]) {
    const childPath = path === "" ? key : `${path}.${key}`;
    const note = fieldNotes.get(child);
    if (note !== undefined) entries.set(key, { path: childPath, schema: child, note });
    else if (child instanceof z.ZodObject) entries.set(key, section(childPath, child));
    else throw new Error(`The schema's field ${childPath} has no note: declare it with works() or refused()`);
  }
  return { path, help: schema.description ?? "", entries };
}

/** Every field below a section, in the order of the schema. */
export function* fieldsOf(section: Section = recordTree): Generator<Field> {
  for (const entry of section.entries.values()) {
    if (isSection(entry)) yield* fieldsOf(entry);
    else yield entry;
  }
}

/** The default that the schema itself has: undefined for a field that must be written, or that is derived. */
export function defaultOf({ schema, note }: Field): unknown {
  if (note.derived !== undefined) return undefined;
  const result = schema.safeParse(undefined);
  return result.success ? result.data : undefined;
}

interface JsonSchema {
  type?: string;
  enum?: string[];
  anyOf?: JsonSchema[];
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
}

function jsonSchema(schema: z.ZodType): JsonSchema {
  const found = z.toJSONSchema(schema, { io: "output", unrepresentable: "any", metadata: z.registry() });
  const { type, ...rest } = found as JsonSchema & { type?: string | string[] };
  if (!Array.isArray(type)) return found as JsonSchema;
  return { anyOf: type.map((one) => one === "null" ? { type: one } : { ...rest, type: one }) };
}

/** The short name of what a field takes: `int`, `float | null`, `1F1B | ZBH1`. */
export function typeOf(schema: z.ZodType): string {
  return name(jsonSchema(schema));

  function name({ type, enum: values, anyOf }: JsonSchema): string {
    if (anyOf) return anyOf.map(name).join(" | ");
    if (values) return values.join(" | ");
    return ({ integer: "int", number: "float", boolean: "bool", string: "str", array: "list", object: "map" } as Record<
      string,
      string
    >)[type ?? ""] ?? type ?? "any";
  }
}

/** What a field takes, in words: "a whole number of at least 1". */
export function expectation(schema: z.ZodType): string {
  return words(jsonSchema(schema));

  function words({ type, enum: values, anyOf, minimum, maximum, exclusiveMinimum }: JsonSchema): string {
    if (anyOf) return anyOf.map(words).join(" or ");
    if (values) return `one of ${values.join(", ")}`;
    if (type === "integer" || type === "number") {
      const kind = type === "integer" ? "a whole number" : "a number";
      const min = minimum !== undefined && minimum > Number.MIN_SAFE_INTEGER ? minimum : undefined;
      const max = maximum !== undefined && maximum < Number.MAX_SAFE_INTEGER ? maximum : undefined;
      if (exclusiveMinimum !== undefined) {
        return `${kind} above ${exclusiveMinimum}${max === undefined ? "" : ` up to ${max}`}`;
      }
      if (min !== undefined && max !== undefined) return `${kind} from ${min} to ${max}`;
      if (min !== undefined) return `${kind} of at least ${min}`;
      return max === undefined ? kind : `${kind} of at most ${max}`;
    }
    return ({ boolean: "true or false", string: "text", array: "a list", object: "a mapping", null: "null" } as Record<
      string,
      string
    >)[type ?? ""] ?? "another value";
  }
}

/** The values an enumeration allows, if the field is one. */
export function choicesOf(schema: z.ZodType): readonly string[] {
  const { enum: values, anyOf } = jsonSchema(schema);
  return values ?? anyOf?.flatMap((option) => option.enum ?? []) ?? [];
}

/** The least and greatest number a field takes. */
export function boundsOf(schema: z.ZodType): readonly number[] {
  const { minimum, maximum } = jsonSchema(schema);
  return [minimum, maximum].filter((bound) => bound !== undefined);
}
