/** `troupe tokenize`: from text files to a tokenized data set, and to a tokenizer where there is none yet. */
import { dirname, join } from "node:path";
import { createBpeTrainer } from "./bpe_training.ts";
import { type DocumentOptions, listTextFiles, readDocuments } from "./documents.ts";
import { type Instruction, instructionFileKinds, readInstructions } from "./instructions.ts";
import { RandomState } from "./mt19937.ts";
import { createTokenFile, refuseExisting, type TokenFileWriter } from "./token_file_writer.ts";
import { loadTokenizer, type Tokenizer } from "./tokenizer.ts";

export interface TokenizeOptions extends DocumentOptions {
  /** Files of text, JSON lines and Parquet, and folders of them. */
  readonly inputs: readonly string[];
  /**
   * The inputs are instruction data: JSON with instruction, input and output. Prompts, bos included, are written as
   * negative ids: context, never targets.
   *
   * @default {false}
   */
  readonly instruct?: boolean;
  /** The tokenizer, or its path. */
  readonly tokenizer: Tokenizer | string;
  /** Written: `outDir/train/SUBSET/NAME.bin` and `.meta`, and with a `validationFraction` the same under `outDir/valid/`. */
  readonly outDir: string;
  /** @default {"data"} */
  readonly name?: string;
  /** Kind of data, a folder name. @default {"en"} */
  readonly subset?: string;
  /** Begin every document with the tokenizer's bos token. @default {true} */
  readonly bos?: boolean;
  /** End every document with the tokenizer's eos token. @default {true} */
  readonly eos?: boolean;
  /** Share of the documents, drawn at random, that go into the validation set. @default {0} */
  readonly validationFraction?: number;
  /** Seed of that draw. @default {0} */
  readonly seed?: number;
  /** Replace existing output instead of refusing. @default {false} */
  readonly overwrite?: boolean;
  readonly onProgress?: (progress: TokenizeProgress) => void;
}

export interface TokenizeProgress {
  readonly stage: "train tokenizer" | "tokenize";
  readonly bytes: number;
  readonly totalBytes: number;
  readonly documents: number;
  readonly tokens: number;
}

/** One written file. */
export interface TokenizedSet {
  readonly path: string;
  readonly documents: number;
  readonly tokens: number;
  /** Documents by length: `counts[i]` of them have from 2^i to 2^(i+1) − 1 tokens. */
  readonly lengthHistogram: number[];
  readonly shortest: number;
  readonly longest: number;
  /** Entropy of the tokens' frequencies, in nats: what a model reaches that knows nothing but them. */
  readonly unigramEntropy: number;
  /** Tokens with id 0, which are never training targets. */
  readonly zeroIds: number;
}

export interface TokenizeSummary {
  readonly tokenizer: string;
  readonly vocabSize: number;
  readonly train: TokenizedSet;
  readonly valid?: TokenizedSet;
  readonly bytes: number;
  readonly seconds: number;
}

/** Counts what goes into one file. */
function tally(writer: TokenFileWriter, vocabSize: number) {
  const counts = new Float64Array(vocabSize);
  const lengthHistogram: number[] = [];
  let shortest = Infinity;
  let longest = 0;
  return {
    write(tokens: readonly number[]) {
      writer.write(tokens);
      for (const token of tokens) counts[Math.abs(token)]++;
      const bucket = Math.floor(Math.log2(Math.max(1, tokens.length)));
      for (let i = lengthHistogram.length; i <= bucket; i++) lengthHistogram.push(0);
      lengthHistogram[bucket]++;
      shortest = Math.min(shortest, tokens.length);
      longest = Math.max(longest, tokens.length);
    },
    summary: (): TokenizedSet => ({
      path: writer.path,
      documents: writer.samples,
      tokens: writer.tokens,
      lengthHistogram,
      shortest: writer.samples > 0 ? shortest : 0,
      longest,
      unigramEntropy: counts.reduce((sum, n) => n > 0 ? sum - n / writer.tokens * Math.log(n / writer.tokens) : sum, 0),
      zeroIds: counts[0] ?? 0,
    }),
  };
}

type Inputs = Pick<TokenizeOptions, "inputs" | "instruct"> & DocumentOptions;

/** What there is to tokenize: documents, or prompts and answers. */
function openInputs(options: Inputs) {
  const files = listTextFiles(options.inputs, options.instruct ? instructionFileKinds : undefined);
  const documents: AsyncIterable<Omit<Instruction, "prompt"> & { readonly prompt?: string }> = options.instruct
    ? readInstructions(files)
    : readDocuments(files, options);
  return { files, documents, totalBytes: files.reduce((sum, { bytes }) => sum + bytes, 0) };
}

/**
 * Tokenizes text files. Throws, leaving no output, when an input, the tokenizer or a wanted bos or eos token is missing,
 * when text is not UTF-8 or a line not JSON, when output exists, or when a set would be empty.
 */
export async function tokenizeFiles(options: TokenizeOptions): Promise<TokenizeSummary> {
  const started = performance.now();
  const { outDir, name = "data", subset = "en", bos = true, eos = true, validationFraction = 0, overwrite = false } =
    options;
  if (!(validationFraction >= 0 && validationFraction < 1)) {
    throw new RangeError(`The validation fraction must be at least 0 and below 1; got ${validationFraction}`);
  }
  const { files, documents: read, totalBytes } = openInputs(options);
  const tokenizer = typeof options.tokenizer === "string" ? loadTokenizer(options.tokenizer) : options.tokenizer;
  for (const [wanted, id, label] of [[bos, tokenizer.bosId, "bos"], [eos, tokenizer.eosId, "eos"]] as const) {
    if (wanted && id === undefined) {
      throw new RangeError(`The tokenizer ${tokenizer.path} has no ${label} token; --no_${label} would work`);
    }
  }
  const pathOf = (split: string) => join(outDir, split, subset, name + ".bin");
  const outputs = validationFraction > 0 ? [pathOf("train"), pathOf("valid")] : [pathOf("train")];
  refuseExisting(outputs.flatMap((path) => [path, path + ".meta"]), overwrite);
  using writers = new DisposableStack();
  const sets = outputs.map((path) => {
    const writer = writers.use(createTokenFile(path, { overwrite }));
    return { writer, tally: tally(writer, tokenizer.vocabSize) };
  });

  const random = new RandomState(options.seed ?? 0);
  const before = new Map<string, number>();
  let bytesBefore = 0;
  for (const { path, bytes } of files) {
    before.set(path, bytesBefore);
    bytesBefore += bytes;
  }
  let documents = 0;
  let tokens = 0;
  for await (const { prompt, text, path, bytesRead } of read) {
    const context = prompt === undefined ? [] : tokenizer.encode(prompt).map((id) => -id);
    if (bos) context.unshift(prompt === undefined ? tokenizer.bosId! : -tokenizer.bosId!);
    const ids = context.concat(tokenizer.encode(text), eos ? [tokenizer.eosId!] : []);
    const set = sets.length > 1 && random.randomSample() < validationFraction ? sets[1] : sets[0];
    set.tally.write(ids);
    tokens += ids.length;
    if (++documents % 256 === 0) {
      options.onProgress?.({ stage: "tokenize", bytes: before.get(path)! + bytesRead, totalBytes, documents, tokens });
    }
  }
  options.onProgress?.({ stage: "tokenize", bytes: totalBytes, totalBytes, documents, tokens });
  for (const { writer } of sets) {
    if (writer.samples === 0) {
      throw new RangeError(
        `${writer.path} would be empty: the text has ${documents} documents. More text` +
          (sets.length > 1 ? `, or another validation fraction than ${validationFraction},` : "") + " would work",
      );
    }
  }
  for (const { writer } of sets) writer.finish();
  const [train, valid] = sets.map((set) => set.tally.summary());
  return {
    tokenizer: tokenizer.path,
    vocabSize: tokenizer.vocabSize,
    train,
    ...(valid && { valid }),
    bytes: totalBytes,
    seconds: (performance.now() - started) / 1000,
  };
}

/**
 * Trains a byte-level BPE tokenizer on text files and writes it to `path`. Returns the entries it has: fewer than
 * `vocabSize` when the text is too small.
 */
export async function trainTokenizer(
  options:
    & {
      readonly vocabSize: number;
      readonly path: string;
      readonly overwrite?: boolean;
      readonly onProgress?: (progress: TokenizeProgress) => void;
    }
    & Inputs,
): Promise<number> {
  refuseExisting([options.path], options.overwrite ?? false);
  const { documents: read, totalBytes } = openInputs(options);
  const trainer = createBpeTrainer();
  let documents = 0;
  for await (const { prompt, text } of read) {
    if (prompt !== undefined) trainer.add(prompt);
    trainer.add(text);
    documents++;
  }
  const trained = trainer.train(options.vocabSize, () => {
    options.onProgress?.({ stage: "train tokenizer", bytes: totalBytes, totalBytes, documents, tokens: 0 });
  });
  Deno.mkdirSync(dirname(options.path), { recursive: true });
  const partial = options.path + ".partial";
  try {
    Deno.writeTextFileSync(partial, JSON.stringify(trained, null, 1) + "\n");
    Deno.renameSync(partial, options.path);
  } catch (error) {
    throw new Error(`Writing ${options.path} failed: ${(error as Error).message}`, { cause: error });
  }
  return Object.keys(trained.model.vocab).length;
}

/** What the command line gives. */
export interface RunTokenizeOptions extends Omit<TokenizeOptions, "tokenizer" | "outDir" | "onProgress"> {
  /** Path of the `tokenizer.json`: read, or written first with `trainBpe`. */
  readonly tokenizer: string;
  /** Train a tokenizer of this many entries on the same text first. */
  readonly trainBpe?: number;
  /** Where the data set goes. Left out, with `trainBpe`: only the tokenizer is made. */
  readonly outDir?: string;
}

/** The verb `tokenize`. Returns nothing but the tokenizer's size when no data set was asked for. */
export async function runTokenize(
  options: RunTokenizeOptions,
  { progress }: { progress?: (progress: TokenizeProgress) => void } = {},
): Promise<{ trainedEntries?: number; summary?: TokenizeSummary }> {
  const { trainBpe, outDir, ...rest } = options;
  const onProgress = progress && { onProgress: progress };
  const trainedEntries = trainBpe === undefined
    ? undefined
    : await trainTokenizer({ ...rest, ...onProgress, vocabSize: trainBpe, path: options.tokenizer });
  if (outDir === undefined) {
    if (trainedEntries === undefined) {
      throw new RangeError(
        "Nothing to do: name a place for the data set (--out), or train a tokenizer (--train_bpe 4096)",
      );
    }
    return { trainedEntries };
  }
  const summary = await tokenizeFiles({ ...rest, ...onProgress, outDir });
  return { ...(trainedEntries !== undefined && { trainedEntries }), summary };
}

/** The summary for people, a few lines. */
export function formatTokenizeSummary(summary: TokenizeSummary): string {
  const count = (value: number) => value.toLocaleString("en-US");
  const lines = [
    `${count(summary.bytes)} bytes of input in ${summary.seconds.toFixed(1)} s ` +
    `(${(summary.bytes / 1e6 / summary.seconds).toFixed(2)} MB/s), vocabulary ${count(summary.vocabSize)}`,
  ];
  for (const set of summary.valid ? [summary.train, summary.valid] : [summary.train]) {
    lines.push(
      `${set.path}: ${count(set.documents)} documents, ${count(set.tokens)} tokens, ` +
        `unigram entropy ${set.unigramEntropy.toFixed(3)} nats per token`,
      `  tokens per document (${set.shortest} to ${set.longest}): ` +
        set.lengthHistogram.flatMap((n, i) => n > 0 ? [`${2 ** i}–${2 ** (i + 1) - 1}: ${count(n)}`] : []).join(", "),
    );
    if (set.zeroIds > 0) lines.push(`  ${count(set.zeroIds)} tokens have id 0, which is never a training target`);
  }
  return lines.join("\n");
}
