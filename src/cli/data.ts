/** `troupe data inspect`: what a training batch holds, as the model sees it. */
import type { ResolvedConfig } from "../config/mod.ts";
import {
  createTrainLoader,
  ignoreIndex,
  loadTokenizer,
  type MicroBatch,
  type Tokenizer,
  type TrainLoader,
} from "../data/mod.ts";
import { countOf } from "../observe/format.ts";
import { ArgumentError, createParser, type ParsedArguments } from "./parser.ts";
import { resolveWritten, say, undivided, type Verb, writtenRecord } from "./verb.ts";

const summary = "show what a training batch holds (data inspect)";

const description = `${summary}

  troupe data inspect --config configs/demo.yaml
  troupe data inspect --batch 10 --row 0 --chars 0 --set data.micro_bsz=1

First the data set: rows, tokens, epochs, kinds. Then the rows of one batch, each a micro-batch: its segments, which
attention never crosses, their text where the tokenizer is known, and how many labels take no part in the loss, and why.`;

interface DataArguments extends ParsedArguments {
  readonly action: "inspect";
  readonly config: string | undefined;
  readonly set: readonly string[];
  readonly batch: number;
  readonly row: number | undefined;
  readonly tokenizer: string | undefined;
  readonly chars: number;
  readonly json: boolean;
  readonly help: boolean;
}

const makeParser = () =>
  createParser<DataArguments>()
    .addArgument("action", { help: "inspect" })
    .addArgument("--config", { help: "Run record, a YAML file; the demo's if left out" })
    .addArgument("--set", { repeat: true, help: "Change a field of the record: section.field=value" })
    .addArgument("--batch", { type: "int", default: 0, help: "Number of the batch, from 0 at the run's begin" })
    .addArgument("--row", { type: "int", help: "Number of the row within the batch; all rows if left out" })
    .addArgument("--tokenizer", { help: "A tokenizer to show text with, instead of data.tokenizer_path" })
    .addArgument("--chars", { type: "int", default: 100, help: "Characters of each segment's text; 0 shows all" })
    .addArgument("--json", { type: "flag", help: "Standard output carries JSON lines: the data set, then each row" });

/** One piece that attention stays within. */
export interface SegmentView {
  /** First place in the row, and one past the last. */
  readonly start: number;
  readonly end: number;
  /** Of its first and last token, for rotary embedding. */
  readonly positions: readonly [number, number];
  /** Kind of data. */
  readonly type: string;
  /** Labels that take no part in the loss. */
  readonly ignored: number;
  readonly text?: string;
}

export interface RowView {
  readonly tokens: number;
  readonly longestSegment: number;
  /** Labels that count. */
  readonly labels: number;
  /** Those that do not, by reason. */
  readonly ignored: Readonly<Record<string, number>>;
  readonly segments: readonly SegmentView[];
}

export interface ViewOptions {
  readonly types: readonly string[];
  /** `data.pack_sample_into_one`: a segment may hold several documents. */
  readonly packedIntoOne: boolean;
  /** `data.use_packed_dataset: false`: a segment may end in padding. */
  readonly padded: boolean;
  readonly tokenizer?: Pick<Tokenizer, "decode">;
}

/** A micro-batch for people: its segments, and why labels are ignored. */
export function viewRow(microBatch: MicroBatch, { types, packedIntoOne, padded, tokenizer }: ViewOptions): RowView {
  const { inputIds, labels, positions, segmentEnd, typeIds, longestSegment } = microBatch;
  const segments: SegmentView[] = [], reasons: Record<string, number> = {};
  for (let start = 0; start < inputIds.length; start = segmentEnd[start]!) {
    const end = segmentEnd[start]!;
    let content = end;
    while (padded && content > start && inputIds[content - 1] === 0) content--;
    let ignored = 0;
    for (let i = start; i < end; i++) {
      if (labels[i] !== ignoreIndex) continue;
      ignored++;
      const reason = i >= content
        ? "padding"
        : i + 1 === content
        ? "the last token of a segment, with none to predict"
        : inputIds[i + 1] === 0
        ? "the next token has id 0, which is never a target"
        : packedIntoOne
        ? "the end of a document, or the next token is context only"
        : "the next token is context only (negative in the file)";
      reasons[reason] = (reasons[reason] ?? 0) + 1;
    }
    segments.push({
      start,
      end,
      positions: [positions[start]!, positions[end - 1]!],
      type: types[typeIds[start]!] ?? String(typeIds[start]),
      ignored,
      ...(tokenizer && { text: tokenizer.decode(inputIds.subarray(start, content)) }),
    });
  }
  const ignored = segments.reduce((sum, segment) => sum + segment.ignored, 0);
  return { tokens: inputIds.length, longestSegment, labels: inputIds.length - ignored, ignored: reasons, segments };
}

/** Sizes of the data set, as the run goes through it. */
function describeData(
  { data }: ResolvedConfig,
  { rows, packedLength, batchesPerEpoch, datasetTypes, mixture }: TrainLoader,
) {
  const ranks = 1; // `data inspect` shows the batches of a run on one rank
  return {
    train_folder: data.train_folder,
    rows,
    tokens_per_row: packedLength,
    seq_len: data.seq_len,
    micro_bsz: data.micro_bsz,
    micro_num: data.micro_num,
    packing: data.type === "streaming"
      ? data.pack_sample_into_one ? "rows are filled" : "rows are padded"
      : !data.use_packed_dataset
      ? "each sample in a row of its own, padded"
      : data.pack_sample_into_one
      ? "samples end to end, as one"
      : "samples end to end, each by itself, cut where a row ends",
    batches_per_epoch: batchesPerEpoch,
    total_steps: data.total_steps,
    epochs: batchesPerEpoch > 0 ? data.total_steps / batchesPerEpoch : null,
    types: [...datasetTypes],
    ...(mixture && {
      mixture: mixture.map(({ name, share, rows }) => {
        const taken = share * data.total_steps * data.micro_num * ranks;
        return { name, share, rows, rows_taken: Math.round(taken), epochs: rows > 0 ? taken / rows : null };
      }),
    }),
  };
}

const count = (value: number) => value.toLocaleString("en-US");

function printData(data: ReturnType<typeof describeData>): void {
  const { rows, tokens_per_row: perRow, epochs } = data;
  const sizes = `of ${count(perRow)} tokens: micro_bsz ${data.micro_bsz} × seq_len ${data.seq_len}, ${data.packing}`;
  console.log(`${data.train_folder ?? "dummy data (data.train_folder is not set)"}, kinds ${data.types.join(", ")}`);
  if (epochs === null) {
    console.log(
      `  a stream of rows ${sizes}; ${count(data.total_steps)} steps, each of ${
        countOf(data.micro_num, "row")
      } (data.micro_num)`,
    );
    printMixture(data);
    return;
  }
  console.log(`  ${count(rows)} rows ${sizes}`);
  console.log(
    `  ${count(data.batches_per_epoch)} batches an epoch, each of ${
      countOf(data.micro_num, "row")
    } (data.micro_num); ` +
      `${count(data.total_steps)} steps are ${epochs.toFixed(2)} epochs`,
  );
  printMixture(data);
}

function printMixture({ mixture = [] }: ReturnType<typeof describeData>): void {
  for (const { name, share, rows, rows_taken: taken, epochs } of mixture) {
    const through = epochs === null ? "" : ` of its ${count(rows)}: ${epochs.toFixed(2)} times through`;
    console.log(`  mixture: ${(100 * share).toFixed(1)} % from ${name}, ${count(taken)} rows in all steps${through}`);
  }
}

function printRow(view: RowView, batch: number, row: number, chars: number): void {
  const { segments, longestSegment, labels, tokens } = view;
  console.log(
    `\nbatch ${batch}, row ${row}: ${segments.length} segments, the longest of ${longestSegment} tokens; ` +
      `${count(labels)} of ${count(tokens)} labels count`,
  );
  for (const [reason, ignored] of Object.entries(view.ignored)) console.log(`  ${count(ignored)} ignored: ${reason}`);
  segments.forEach(({ start, end, positions: [first, last], type, ignored, text }, index) => {
    console.log(
      `  segment ${index}  tokens ${start}–${end - 1} (${end - start})  positions ${first}–${last}  kind ${type}` +
        (ignored > 0 ? `  ${ignored} ignored` : ""),
    );
    if (text === undefined) return;
    const shown = chars > 0 && text.length > chars ? `${text.slice(0, chars)}…` : text;
    console.log(`      ${JSON.stringify(shown)}`);
  });
}

function findTokenizer(config: ResolvedConfig, given: string | undefined): Tokenizer | undefined {
  const path = given ?? (config.data.train_folder ? config.data.tokenizer_path : null);
  if (path === null) {
    if (!config.data.train_folder) return undefined; // dummy data is no text
    say("No text is shown: data.tokenizer_path is not set; --tokenizer FILE would show it");
    return undefined;
  }
  const tokenizer = loadTokenizer(path);
  if (tokenizer.vocabSize > config.model.vocab_size) {
    say(`${path} has ids up to ${tokenizer.vocabSize - 1}, and model.vocab_size is ${config.model.vocab_size}`);
  }
  return tokenizer;
}

export const data: Verb = {
  summary,
  async run(args) {
    const parser = makeParser();
    const parsed = parser.parse(args);
    if (parsed.help) {
      console.log(parser.help("data", description));
      return 0;
    }
    if (parsed.action !== "inspect") throw new ArgumentError(`"${parsed.action}" is not understood; inspect works`);
    for (const name of ["batch", "row", "chars"] as const) {
      if ((parsed[name] ?? 0) < 0) throw new ArgumentError(`--${name}: ${parsed[name]} is below 0`);
    }
    const written = await writtenRecord({ ...parsed, nproc: undefined, backend: undefined, seed: 0, resume: false });
    const config = resolveWritten(undivided(written), { worldSize: 1 });
    const { total_steps } = config.data;
    if (parsed.batch >= total_steps) {
      throw new ArgumentError(
        `--batch: ${parsed.batch} is beyond the run, which has ${total_steps} batches, numbered from 0 (data.total_steps)`,
      );
    }
    const tokenizer = findTokenizer(config, parsed.tokenizer);
    const loader = createTrainLoader({ ...config.data, use_shm: false }, {
      dataRank: 0,
      dataWorldSize: 1,
      onNotice: say,
    });
    try {
      const described = describeData(config, loader);
      if (parsed.json) console.log(JSON.stringify(described));
      else printData(described);

      let batch = await loader.next();
      while (batch.batchCount < parsed.batch) batch = await loader.next();
      if (batch.skipped) {
        say(`Batch ${parsed.batch} is dropped by data.skip_batches`);
        return 0;
      }
      if (parsed.row !== undefined && parsed.row >= batch.rows) {
        throw new ArgumentError(
          `--row: batch ${parsed.batch} has ${countOf(batch.rows, "row")}, numbered from 0: saw ${parsed.row}`,
        );
      }
      const options = {
        types: loader.datasetTypes,
        packedIntoOne: config.data.type === "tokenized" && config.data.pack_sample_into_one,
        padded: config.data.type === "streaming" ? !config.data.pack_sample_into_one : !config.data.use_packed_dataset,
        ...(tokenizer && { tokenizer }),
      };
      if (!parsed.json && loader.datasetTypes.length > 1) {
        const kinds = batch.microBatches.map(({ typeIds }) => loader.datasetTypes[typeIds[0]!] ?? String(typeIds[0]));
        const rows = [...new Set(kinds)].sort().map((kind) => `${kind} ${kinds.filter((k) => k === kind).length}`);
        console.log(`\nbatch ${parsed.batch}, rows by kind of their first token: ${rows.join(", ")}`);
      }
      for (const [row, microBatch] of batch.microBatches.entries()) {
        if (parsed.row !== undefined && row !== parsed.row) continue;
        const view = viewRow(microBatch, options);
        if (parsed.json) console.log(JSON.stringify({ batch: parsed.batch, row, epoch: batch.epoch, ...view }));
        else printRow(view, parsed.batch, row, parsed.chars);
      }
    } finally {
      loader.close();
    }
    return 0;
  },
};
