/** The record for people: every field explained, and a resolved record as YAML. */
import { stringify } from "@std/yaml";
import { defaultOf, type Field, fieldsOf, isSection, recordTree, type Section, typeOf } from "./record.ts";
import type { ResolvedConfig } from "./schema/mod.ts";

const width = 100;

/** Every field with its type, default, status and meaning, section by section, in lines of at most 100 characters. */
export function configHelp(): string {
  const top = [...recordTree.entries.values()].filter((entry) => !isSection(entry)) as Field[];
  const sections = [...recordTree.entries.values()].filter(isSection);
  return [
    ...wrap(
      "A run record is YAML: fields in sections. `extends: other.yaml` begins with another record, and --set " +
        "section.field=value changes a field. Numbers may be arithmetic: 8/3, 2**16. A field marked refused is known " +
        "but not built yet: a record that sets it to more than its default is not run.",
      "",
    ),
    "",
    describe("Outside any section", "", top),
    ...sections.map((section) =>
      describe(`${section.path}: ${section.help}`, `${section.path}.`, [...fieldsOf(section)])
    ),
  ].join("\n");
}

function describe(title: string, prefix: string, fields: readonly Field[]): string {
  const rows = fields.map((field) => ({
    name: field.path.slice(prefix.length),
    type: typeOf(field.schema),
    standard: standardText(field),
    field,
  }));
  const longest = (texts: string[], most: number) => Math.min(most, Math.max(...texts.map(({ length }) => length)));
  const nameWidth = longest(rows.map(({ name }) => name), 52);
  const typeWidth = longest(rows.map(({ type }) => type), 22);
  const lines = rows.flatMap(({ name, type, standard, field: { note } }) => {
    const head = `  ${name.padEnd(nameWidth)}  ${type.padEnd(typeWidth)}  `;
    const only = note.only === undefined
      ? ""
      : `; only ${note.only.map((value) => JSON.stringify(value)).join(", ")} yet`;
    const rest = `${note.status.padEnd(7)}  ${standard}${only}`;
    const column = 2 + nameWidth + 2 + typeWidth + 2;
    const first = head.length === column && column + rest.length <= width
      ? [head + rest]
      : [head.trimEnd(), " ".repeat(Math.max(6, Math.min(column, width - rest.length))) + rest];
    return [...first, ...wrap(`      ${note.help}`, "      ")];
  });
  return [...wrap(title, "  "), ...lines, ""].join("\n");
}

function standardText(field: Field): string {
  if (field.note.derived !== undefined) return `default: ${field.note.derived}`;
  const standard = defaultOf(field);
  return standard === undefined ? "required" : `default: ${JSON.stringify(standard)}`;
}

/** Breaks a line between words; the following lines are indented. A line that fits keeps its spacing. */
function wrap(text: string, indent: string): string[] {
  const lines: string[] = [];
  let rest = text;
  while (rest.length > width) {
    const at = rest.lastIndexOf(" ", width);
    if (at <= indent.length) break;
    lines.push(rest.slice(0, at).trimEnd());
    rest = indent + rest.slice(at + 1);
  }
  return [...lines, rest];
}

/** The resolved record as YAML, in the order of the schema. Reading it again gives the same record. */
export function printResolved(config: ResolvedConfig): string {
  return stringify(inOrder(recordTree, config as unknown as Record<string, unknown>), { lineWidth: 120 });
}

function inOrder(section: Section, values: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(
    [...section.entries].map(([key, entry]) => [
      key,
      isSection(entry) ? inOrder(entry, values[key] as Record<string, unknown>) : values[key],
    ]),
  );
}
