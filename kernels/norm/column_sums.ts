/**
 * Sums over rows, for the gradients of a norm's weight and bias. Two passes, no atomics, so the order of summation is
 * fixed: each invocation sums one vector of columns over a chunk of rows into a partial row, then the partial rows are
 * summed. One chunk needs no second pass.
 *
 * The second pass reads little, and waits. Where an invocation sums all partial rows of its columns, which is right in
 * software, a GPU has few of them, each with many reads one after the other. There 16 invocations share them, so that
 * everything is asked for at once.
 */
import { type DeviceTraits, type Operand, type Pass, spread } from "../kernel.ts";
import { type Storage, storage } from "../storage.ts";
import { vectorPrelude } from "./rows.ts";

/** Rows a chunk has at least, so that partial rows are few beside what is read. */
const rowsPerChunk = 64;
/** Chunks at most, so that the second pass stays short. */
const mostChunks = 128;

const upTo = (count: number) => Array.from({ length: count }, (_, k) => k);

export const chunkCount = (rows: number): number => Math.min(mostChunks, Math.ceil(rows / rowsPerChunk));

/** The `scratch` operand that a sum of `sums` columns' worth over `rows` needs: none where one chunk holds all rows. */
export function columnScratch(rows: number, columns: number, sums: number): Operand[] {
  const chunks = chunkCount(rows);
  return chunks === 1 ? [] : [{ name: "partial", type: "f32", length: chunks * columns * sums, access: "scratch" }];
}

/**
 * @param terms output operand (`f32`) by name → what a row adds to it: an expression of `row`, `i` (the place in a
 * `[rows, columns]` operand), of type `V`
 * @param perRow operands with one element a row; all other inputs are `[rows, columns]`
 */
export function columnSumPasses(
  traits: DeviceTraits,
  { rows, columns, accumulate, operands, terms, perRow }: {
    rows: number;
    columns: number;
    accumulate: boolean;
    operands: readonly Operand[];
    terms: (storage: Storage) => Readonly<Record<string, string>>;
    perRow: readonly string[];
  },
): Pass[] {
  const width = columns % 4 === 0 ? 4 : 1, vectors = columns / width;
  const chunks = chunkCount(rows), rowsEach = Math.ceil(rows / chunks);
  const place = (name: string) => operands.findIndex((operand) => operand.name === name);
  const inputs = operands.flatMap(({ access }, index) => access === "read" ? [index] : []);
  const elements = Object.fromEntries(
    operands.filter(({ name }) => !perRow.includes(name)).map(({ name }) => [name, "V"]),
  );
  const read = inputs.map((i) => operands[i]);
  const imaged = read.map(({ name }) => name).filter((name) => !perRow.includes(name));
  const added = terms(storage(traits, read, elements, width, imaged)), outputs = Object.keys(added);
  const declare = (places: readonly number[]) => {
    const { directives, bindings, bound } = storage(traits, places.map((i) => operands[i]), elements, width, imaged);
    return { text: `${directives}${vectorPrelude(width)}\n${bindings}`, ...bound(places) };
  };
  const [x, y] = spread(Math.ceil(vectors / 64));
  const open = `
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let c = (group.y * ${x}u + group.x) * 64u + local;
  if (c >= ${vectors}u) { return; }`;
  const store = (name: string) => `${name}[c] ${accumulate ? "+=" : "="} ${name}Sum;`;
  const clear = outputs.map((name) => `var ${name}Sum = V();`).join(" ");

  const sumChunk = (row: string) => `
    { let row = ${row}; let i = row * ${vectors}u + c; ${
    outputs.map((name) => `${name}Sum += ${added[name]};`).join(" ")
  } }`;
  // Four rows an iteration: their loads are in flight together.
  const chunkBody = `
  ${clear}
  let first = group.z * ${rowsEach}u;
  let end = min(first + ${rowsEach}u, ${rows}u);
  var r = first;
  for (; r + 4u <= end; r += 4u) {${[0, 1, 2, 3].map((k) => sumChunk(`r + ${k}u`)).join("")}
  }
  for (; r < end; r += 1u) {${sumChunk("r")}
  }`;
  const outputIndexes = outputs.map(place);
  if (chunks === 1) {
    const { text, ...bound } = declare([...inputs, ...outputIndexes]);
    return [{
      code: `${text}
${open}${chunkBody}
  ${outputs.map(store).join(" ")}
}
`,
      workgroups: [x, y, 1],
      ...bound,
    }];
  }
  const partial = place("partial");
  const slot = (chunk: string, sum: number) => `partial[((${chunk}) * ${outputs.length}u + ${sum}u) * ${vectors}u + c]`;
  const { text: sumText, ...sumBound } = declare([...inputs, partial]);
  const { text: finishText, ...finishBound } = declare([partial, ...outputIndexes]);
  const addChunk = (chunk: string) => outputs.map((name, sum) => `${name}Sum += ${slot(chunk, sum)};`).join(" ");
  const sums: Pass = {
    code: `${sumText}
${open}${chunkBody}
  ${outputs.map((name, sum) => `${slot("group.z", sum)} = ${name}Sum;`).join(" ")}
}
`,
    workgroups: [x, y, chunks],
    ...sumBound,
  };
  if (!traits.software) {
    const across = 16, down = 16, shares = upTo(Math.ceil(chunks / down)), groups = spread(Math.ceil(vectors / across));
    const share = (k: number) => {
      const chunk = `${k * down}u + part`, adds = addChunk(chunk);
      return (k + 1) * down <= chunks ? adds : `if (${chunk} < ${chunks}u) { ${adds} }`;
    };
    const join = (k: number) =>
      outputs.map((name) => `${name}Sum += ${name}Shares[local + ${(k + 1) * across}u];`).join(" ");
    const code = `${finishText}
${outputs.map((name) => `var<workgroup> ${name}Shares: array<V, ${across * down}>;`).join("\n")}
@compute @workgroup_size(${across * down})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let column = (group.y * ${groups[0]}u + group.x) * ${across}u + local % ${across}u;
  let part = local / ${across}u;
  let c = min(column, ${vectors - 1}u);
  ${clear}
  ${shares.map(share).join("\n  ")}
  ${outputs.map((name) => `${name}Shares[local] = ${name}Sum;`).join(" ")}
  workgroupBarrier();
  if (part > 0u || column >= ${vectors}u) { return; }
  ${upTo(down - 1).map(join).join("\n  ")}
  ${outputs.map(store).join(" ")}
}
`;
    return [sums, { code, workgroups: groups, ...finishBound }];
  }
  return [sums, {
    code: `${finishText}
${open}
  ${clear}
  var chunk = 0u;
  for (; chunk + 8u <= ${chunks}u; chunk += 8u) {
    ${Array.from({ length: 8 }, (_, k) => addChunk(`chunk + ${k}u`)).join("\n    ")}
  }
  for (; chunk < ${chunks}u; chunk += 1u) { ${addChunk("chunk")} }
  ${outputs.map(store).join(" ")}
}
`,
    workgroups: [x, y, 1],
    ...finishBound,
  }];
}
