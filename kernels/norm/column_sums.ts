/**
 * Sums over rows, for the gradients of a norm's weight and of biases. Two passes, no atomics, so the order of summation is
 * fixed: partial rows of a chunk of rows each, then their sum. One chunk needs no second pass.
 *
 * On a GPU what counts is how much is asked for at once. A workgroup has a block of columns, side by side, and so many
 * rows under each other; an invocation asks for several rows of its vector together, and the workgroup adds up what its
 * rows yield. Where that makes groups enough for the device, one chunk is all. In the second pass, which reads little and
 * waits, 16 invocations share the partial rows of a vector. In software an invocation sums a column by itself in both.
 */
import { choose, sizeClass } from "../choices.ts";
import { type DeviceTraits, elementBytes, type Operand, type Pass, spread } from "../kernel.ts";
import { type Storage, storage } from "../storage.ts";
import { vectorPrelude } from "./rows.ts";

/** Rows a chunk has at least, so that partial rows are few beside what is read. */
const rowsPerChunk = 32;
/** Chunks at most, so that the second pass stays short. */
const mostChunks = 128;

const upTo = (count: number) => Array.from({ length: count }, (_, k) => k);

const chunkCount = (rows: number): number => Math.min(mostChunks, Math.ceil(rows / rowsPerChunk));

/** The `scratch` operand that a sum of `sums` columns' worth over `rows` needs: none where one chunk holds all rows. */
export function columnScratch(rows: number, columns: number, sums: number): Operand[] {
  const chunks = chunkCount(rows);
  return chunks === 1 ? [] : [{ name: "partial", type: "f32", length: chunks * columns * sums, access: "scratch" }];
}

/** How the first pass is shared out. */
interface Form {
  /** Vectors of columns, and rows under each other, of a workgroup. */
  readonly across: number;
  readonly down: number;
  /** Rows that an invocation asks for together. */
  readonly ahead: number;
  readonly chunks: number;
}
const nameOf = ({ across, down, ahead, chunks }: Form) => `${across} x ${down}, ${ahead} ahead, ${chunks} chunks`;

/**
 * On an H200 the weight gradient of a norm of 8,192 x 2,048 in `f32` (a copy of as many bytes: 37 us) takes 41 us in one
 * chunk by "4 x 256", 44 in 64 chunks by "32 x 8", 47 by one invocation for each chunk of a column, whichever way. Of 768
 * columns there are too few groups in one chunk: 4,096 rows take 17 us so and 15 in chunks, 34 by one invocation; in `f16`,
 * whose rows are shorter, 12 and 14. Where one operand alone is read, whole lines of 128 bytes are quicker, by "8 x 128":
 * 16,384 x 4,096 takes 66 us (78 by "4 x 256"), 65,536 x 2,048 130 (139), 8,192 x 2,048 23 to 24.5 (24 to 24.5), and a
 * second pass costs 6; 32 bytes, "2 x 512", take half as long again.
 *
 * @param sums columns' worth of them
 * @param read how many operands are read
 * @param bytes of a vector of what is summed
 */
function formOf(
  { rows, vectors, sums, read, bytes }: { rows: number; vectors: number; sums: number; read: number; bytes: number },
  traits: DeviceTraits,
): Form {
  const most = chunkCount(rows), { limits } = traits;
  if (traits.software) return { across: 64, down: 1, ahead: 4, chunks: most };
  const oneChunk = sums === 1
    ? { across: 4, down: 256, ahead: 8, chunks: 1 }
    : { across: 8, down: 128, ahead: 4, chunks: 1 };
  const fewerRows = { across: 32, down: 8, ahead: 4, chunks: Math.min(64, most) };
  const fits = limits.maxComputeInvocationsPerWorkgroup >= 1024 &&
    limits.maxComputeWorkgroupStorageSize >= 16384 * sums;
  if (!fits || rows < 1024) return fewerRows;
  const groups = Math.ceil(vectors / oneChunk.across);
  const lines = { across: 8, down: 128, ahead: 16, chunks: 1 };
  const forms = [
    ...(read === 1 && Math.ceil(vectors / lines.across) >= 64 ? [lines] : []),
    ...(groups >= (bytes === 16 ? 64 : 48) ? [oneChunk, fewerRows] : [fewerRows, oneChunk]),
  ];
  const question = `column sums ${sizeClass(rows)} x ${sizeClass(vectors)}, ${sums} of ${bytes}`;
  const name = choose(traits, question, forms.map(nameOf));
  return forms.find((form) => nameOf(form) === name)!;
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
  const place = (name: string) => operands.findIndex((operand) => operand.name === name);
  const inputs = operands.flatMap(({ access }, index) => access === "read" ? [index] : []);
  const elements = Object.fromEntries(
    operands.filter(({ name }) => !perRow.includes(name)).map(({ name }) => [name, "V"]),
  );
  const read = inputs.map((i) => operands[i]);
  const imaged = read.map(({ name }) => name).filter((name) => !perRow.includes(name));
  const added = terms(storage(traits, read, elements, width, imaged)), outputs = Object.keys(added);
  const bytes = width *
    Math.min(4, ...read.filter(({ name }) => !perRow.includes(name)).map(({ type }) => elementBytes[type]));
  const { across, down, ahead, ...form } = formOf(
    { rows, vectors, sums: outputs.length, read: imaged.length, bytes },
    traits,
  );
  const rowsEach = Math.ceil(rows / form.chunks), chunks = Math.ceil(rows / rowsEach);
  const declare = (places: readonly number[]) => {
    const { directives, bindings, bound } = storage(traits, places.map((i) => operands[i]), elements, width, imaged);
    return { text: `${directives}${vectorPrelude(width)}\n${bindings}`, ...bound(places) };
  };
  const [x, y] = spread(Math.ceil(vectors / across));
  const column = `(group.y * ${x}u + group.x) * ${across}u + local % ${across}u`;
  const main = (size: number) => `
@compute @workgroup_size(${size})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {`;
  /** An invocation for each vector of columns. */
  const open = `${main(across)}
  let c = ${column};
  if (c >= ${vectors}u) { return; }`;
  const store = (name: string) => `${name}[c] ${accumulate ? "+=" : "="} ${name}Sum;`;
  const clear = outputs.map((name) => `var ${name}Sum = V();`).join(" ");

  const sumChunk = (row: string) => `
    { let row = ${row}; let i = row * ${vectors}u + c; ${
    outputs.map((name) => `${name}Sum += ${added[name]};`).join(" ")
  } }`;
  const stride = ahead * down;
  const sumText = `
  ${clear}
  let first = group.z * ${rowsEach}u${down > 1 ? ` + local / ${across}u` : ""};
  let end = min(group.z * ${rowsEach}u + ${rowsEach}u, ${rows}u);
  var r = first;
  for (; r + ${stride - down}u < end; r += ${stride}u) {${upTo(ahead).map((k) => sumChunk(`r + ${k * down}u`)).join("")}
  }
  for (; r < end; r += ${down}u) {${sumChunk("r")}
  }`;
  const shares = down === 1
    ? ""
    : outputs.map((name) => `var<workgroup> ${name}Shares: array<V, ${across * down}>;`).join("\n");
  const halvings = upTo(Math.log2(down)).map((step) => {
    const half = across * down >> (step + 1);
    return `
  if (local < ${half}u) { ${
      outputs.map((name) => `${name}Shares[local] += ${name}Shares[local + ${half}u];`).join(" ")
    } }
  workgroupBarrier();`;
  });
  const chunkText = (write: string) =>
    down === 1
      ? `${open}${sumText}
  ${write}
}
`
      : `${shares}
${main(across * down)}
  let column = ${column};
  let c = min(column, ${vectors - 1}u);${sumText}
  ${outputs.map((name) => `${name}Shares[local] = ${name}Sum;`).join(" ")}
  workgroupBarrier();${halvings.join("")}
  if (local >= ${across}u || column >= ${vectors}u) { return; }
  ${outputs.map((name) => `${name}Sum = ${name}Shares[local];`).join(" ")}
  ${write}
}
`;
  const outputIndexes = outputs.map(place);
  if (chunks === 1) {
    const { text, ...bound } = declare([...inputs, ...outputIndexes]);
    return [{ code: `${text}\n${chunkText(outputs.map(store).join(" "))}`, workgroups: [x, y, 1], ...bound }];
  }
  const partial = place("partial");
  const slot = (chunk: string, sum: number) => `partial[((${chunk}) * ${outputs.length}u + ${sum}u) * ${vectors}u + c]`;
  const { text: sumsText, ...sumBound } = declare([...inputs, partial]);
  const { text: finishText, ...finishBound } = declare([partial, ...outputIndexes]);
  const addChunk = (chunk: string) => outputs.map((name, sum) => `${name}Sum += ${slot(chunk, sum)};`).join(" ");
  const sums: Pass = {
    code: `${sumsText}\n${chunkText(outputs.map((name, sum) => `${slot("group.z", sum)} = ${name}Sum;`).join(" "))}`,
    workgroups: [x, y, chunks],
    ...sumBound,
  };
  if (traits.software) {
    return [sums, {
      code: `${finishText}
${open}
  ${clear}
  var chunk = 0u;
  for (; chunk + 8u <= ${chunks}u; chunk += 8u) {
    ${upTo(8).map((k) => addChunk(`chunk + ${k}u`)).join("\n    ")}
  }
  for (; chunk < ${chunks}u; chunk += 1u) { ${addChunk("chunk")} }
  ${outputs.map(store).join(" ")}
}
`,
      workgroups: [x, y, 1],
      ...finishBound,
    }];
  }
  return [sums, finishPass()];

  function finishPass(): Pass {
    const across = 16, down = 16, groups = spread(Math.ceil(vectors / across));
    const share = (k: number) => {
      const chunk = `${k * down}u + part`, adds = addChunk(chunk);
      return (k + 1) * down <= chunks ? adds : `if (${chunk} < ${chunks}u) { ${adds} }`;
    };
    const join = (k: number) =>
      outputs.map((name) => `${name}Sum += ${name}Shares[local + ${(k + 1) * across}u];`).join(" ");
    const code = `${finishText}
${outputs.map((name) => `var<workgroup> ${name}Shares: array<V, ${across * down}>;`).join("\n")}
${main(across * down)}
  let column = (group.y * ${groups[0]}u + group.x) * ${across}u + local % ${across}u;
  let part = local / ${across}u;
  let c = min(column, ${vectors - 1}u);
  ${clear}
  ${upTo(Math.ceil(chunks / down)).map(share).join("\n  ")}
  ${outputs.map((name) => `${name}Shares[local] = ${name}Sum;`).join(" ")}
  workgroupBarrier();
  if (part > 0u || column >= ${vectors}u) { return; }
  ${upTo(down - 1).map(join).join("\n  ")}
  ${outputs.map(store).join(" ")}
}
`;
    return { code, workgroups: groups, ...finishBound };
  }
}
