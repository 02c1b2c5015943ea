import { assert, assertEquals, assertGreater } from "@std/assert";
import { derivedValues } from "./derived.ts";
import { configHelp, printResolved } from "./help.ts";
import { parse } from "@std/yaml";
import { defaultOf, fieldsOf, isSection, recordTree } from "./record.ts";
import { resolveConfig } from "./resolve.ts";
import { configSchema } from "./schema/mod.ts";

const minimal = {
  model: { num_layers: 2 },
  data: { seq_len: 16, micro_bsz: 1, total_steps: 3 },
  adam: { lr: 1e-3 },
  ckpt: { enable_save_ckpt: false },
};
const fields = [...fieldsOf()];
const paths = new Set(fields.map(({ path }) => path));

Deno.test("the schema gives every leaf a status and a description", () => {
  const config = configSchema.parse(resolveConfig(minimal));
  assertGreater(fields.length, 150);
  for (const { path, note } of fields) {
    assert(note.status === "works" || note.status === "refused", `${path} has no status`);
    assertGreater(note.help.length, 5, `${path} has no description`);
    const value = path.split(".").reduce<unknown>((value, key) => (value as Record<string, unknown>)[key], config);
    assert(value !== undefined, `${path} is not in a resolved record`);
  }
  const refused = fields.filter(({ note }) => note.status === "refused").length;
  console.log(`${fields.length} fields: ${fields.length - refused} work, ${refused} are refused`);
});

Deno.test("the schema's derived fields and derivedValues name each other", () => {
  const derived = fields.filter(({ note }) => note.derived !== undefined).map(({ path }) => path);
  assertEquals(derived.sort(), Object.keys(derivedValues).sort());
});

Deno.test("the schema's notes name fields and values that exist", () => {
  for (const { path, note, schema } of fields) {
    if (note.onlyWith !== undefined) assert(paths.has(note.onlyWith), `${path}: no field ${note.onlyWith}`);
    for (const value of note.only ?? []) assert(schema.safeParse(value).success, `${path}: ${value} is not accepted`);
    if (note.example !== undefined) assert(schema.safeParse(note.example).success, `${path}: bad example`);
  }
});

Deno.test("the schema has an example for every field that must be written", () => {
  for (const field of fields) {
    if (field.note.derived !== undefined || defaultOf(field) !== undefined) continue;
    assert(field.note.example !== undefined, `${field.path} is required and has no example`);
  }
});

Deno.test("a resolved record is accepted by the schema as it stands, and resolves to itself", () => {
  const config = resolveConfig(minimal);
  assertEquals(configSchema.parse(config) as unknown, config);
  assertEquals(resolveConfig(config), config);
});

Deno.test("printResolved() writes YAML that reads back to the same record, in the schema's order", () => {
  const config = resolveConfig(minimal);
  const text = printResolved(config);
  assertEquals(resolveConfig(parse(text)), config);
  assertEquals(Object.keys(parse(text) as object), [...recordTree.entries.keys()]);
});

Deno.test("configHelp() names every field with its status in at most 100 columns", () => {
  const lines = configHelp().split("\n");
  for (const line of lines) assert(line.length <= 100, line);
  for (const entry of recordTree.entries.values()) {
    const inside = isSection(entry) ? [...fieldsOf(entry)] : [entry];
    const start = isSection(entry) ? lines.findIndex((line) => line.startsWith(`${entry.path}: `)) : 0;
    assert(start >= 0, `${entry.path} has no heading`);
    for (const { path, note } of inside) {
      const name = isSection(entry) ? path.slice(entry.path.length + 1) : path;
      const at = lines.findIndex((line, index) => index >= start && line.startsWith(`  ${name} `));
      assert(at > 0, `${path} is missing`);
      assert(lines.slice(at, at + 2).some((line) => line.includes(` ${note.status} `)), `${path} has no status`);
    }
  }
});
