/**
 * Sums over rows, for the gradients of a norm's weight and bias. Two passes, no atomics, so the order of summation is
 * fixed: each invocation sums one vector of columns over a chunk of rows into a partial row, then the partial rows are
 * summed. One chunk needs no second pass.
 */
import { type DeviceTraits, type Operand, type Pass, spread } from "../kernel.ts";
import { type Storage, storage } from "../storage.ts";
import { vectorPrelude } from "./rows.ts";

/** Rows a chunk has at least, so that partial rows are few beside what is read. */
const rowsPerChunk = 64;
/** Chunks at most, so that the second pass stays short. */
const mostChunks = 128;

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
  return [{
    code: `${sumText}
${open}${chunkBody}
  ${outputs.map((name, sum) => `${slot("group.z", sum)} = ${name}Sum;`).join(" ")}
}
`,
    workgroups: [x, y, chunks],
    ...sumBound,
  }, {
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
