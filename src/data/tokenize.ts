/** `troupe tokenize`: from text files to a tokenized data set, and to a tokenizer where there is none yet. */
import { dirname, join } from "node:path";
import { createBpeTrainer } from "./bpe_training.ts";
import { type DocumentOptions, listTextFiles, readDocuments, type TextFile } from "./documents.ts";
import { type Chunk, type EncodedLines, openChunkEncoders } from "./encode_chunks.ts";
import { type Instruction, instructionFileKinds, readInstructions } from "./instructions.ts";
import { RandomState } from "./mt19937.ts";
import {
  createTokenFile,
  fileExists,
  hasWritten,
  naming,
  refuseExisting,
  type TokenFileWriter,
} from "./token_file_writer.ts";
import { fingerprint, type Journal, readJournal, type Tally, writeJournal } from "./tokenize_journal.ts";
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
  /**
   * Workers that encode beside this thread, which reads and writes; with none it encodes too. They load the tokenizer by
   * its path.
   *
   * @default {one a core, none for little text}
   */
  readonly workers?: number;
  /** Between two notes of how far it is. @default {5} */
  readonly journalSeconds?: number;
  readonly onProgress?: (progress: TokenizeProgress) => void;
  /** Told what people should know: that an unfinished run goes on, or why it does not. */
  readonly onNotice?: (message: string) => void;
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

const newTally = (vocabSize: number): Tally => ({
  lengthHistogram: [],
  shortest: Infinity,
  longest: 0,
  counts: new Float64Array(vocabSize),
});

/** Counts what goes into one file. */
function count(tally: Tally, { lengths, ids, counts }: EncodedLines): void {
  for (const length of lengths) {
    const bucket = Math.floor(Math.log2(Math.max(1, length))), { lengthHistogram } = tally;
    while (lengthHistogram.length <= bucket) lengthHistogram.push(0);
    lengthHistogram[bucket]!++;
    tally.shortest = Math.min(tally.shortest, length);
    tally.longest = Math.max(tally.longest, length);
  }
  for (let i = 0; i < ids.length; i++) tally.counts[ids[i]!]! += counts[i]!;
}

function summarize(
  { path, samples, tokens }: TokenFileWriter,
  { lengthHistogram, shortest, longest, counts }: Tally,
): TokenizedSet {
  return {
    path,
    documents: samples,
    tokens,
    lengthHistogram,
    shortest: samples > 0 ? shortest : 0,
    longest,
    unigramEntropy: counts.reduce((sum, n) => n > 0 ? sum - n / tokens * Math.log(n / tokens) : sum, 0),
    zeroIds: counts[0] ?? 0,
  };
}

type Inputs = Pick<TokenizeOptions, "inputs" | "instruct"> & DocumentOptions;

/** What there is to tokenize: files, and their documents, or prompts and answers. */
function openInputs(options: Inputs) {
  const files = listTextFiles(options.inputs, options.instruct ? instructionFileKinds : undefined);
  const documentsOf = (
    files: readonly TextFile[],
  ): AsyncIterable<Omit<Instruction, "prompt"> & { readonly prompt?: string }> =>
    options.instruct ? readInstructions(files) : readDocuments(files, options);
  return { files, documentsOf, totalBytes: files.reduce((sum, { bytes }) => sum + bytes, 0) };
}

/** Bytes of input below which workers take longer to start than they save. */
const littleText = 8e6;

/** A chunk goes to an encoder with the document that reaches one of these. */
const chunkCharacters = 1 << 18, chunkDocuments = 1 << 12;

/** Documents side by side, and where reading stands after the last of them. */
interface PlacedChunk extends Chunk {
  /** Files before the one that the last document is of. */
  readonly file: number;
  /** Documents of that file. */
  readonly inFile: number;
  readonly bytesRead: number;
}

/** The documents from a place on, in chunks; `draw` says which set the next document goes to. */
async function* readChunks(
  { files, documentsOf }: ReturnType<typeof openInputs>,
  from: Pick<Journal, "file" | "inFile">,
  draw: () => number,
): AsyncGenerator<PlacedChunk> {
  let texts: string[] = [], prompts: string[] = [], sets: number[] = [], characters = 0;
  for (let file = from.file; file < files.length; file++) {
    const skip = file === from.file ? from.inFile : 0;
    let inFile = 0, bytesRead = 0;
    const take = (): PlacedChunk => {
      const chunk = { texts, sets: Uint8Array.from(sets), file, inFile, bytesRead };
      const taken = prompts.length > 0 ? { ...chunk, prompts } : chunk;
      [texts, prompts, sets, characters] = [[], [], [], 0];
      return taken;
    };
    for await (const document of documentsOf([files[file]!])) {
      bytesRead = document.bytesRead;
      if (inFile++ < skip) continue;
      texts.push(document.text);
      if (document.prompt !== undefined) prompts.push(document.prompt);
      sets.push(draw());
      characters += document.text.length + (document.prompt?.length ?? 0);
      if (characters >= chunkCharacters || texts.length >= chunkDocuments) yield take();
    }
    if (texts.length > 0 && (file + 1 === files.length || characters >= chunkCharacters / 2)) yield take();
  }
}

/**
 * Tokenizes text files, in several workers if asked to; the output does not depend on how many. Throws, leaving no output,
 * when an input, the tokenizer or a wanted bos or eos token is missing, when text is not UTF-8 or a line not JSON, when
 * output exists, or when a set would be empty.
 *
 * Every few seconds it notes how far it is, beside the output. Once it has, what was done outlives a kill and an error, and
 * the same call goes on from there.
 */
export async function tokenizeFiles(options: TokenizeOptions): Promise<TokenizeSummary> {
  const started = performance.now();
  const { outDir, name = "data", subset = "en", bos = true, eos = true, validationFraction = 0, overwrite = false } =
    options;
  const { seed = 0, journalSeconds = 5, onNotice } = options;
  if (!(validationFraction >= 0 && validationFraction < 1)) {
    throw new RangeError(`The validation fraction must be at least 0 and below 1; got ${validationFraction}`);
  }
  const inputs = openInputs(options), { files, totalBytes } = inputs;
  const tokenizer = typeof options.tokenizer === "string" ? loadTokenizer(options.tokenizer) : options.tokenizer;
  const { workers = totalBytes < littleText ? 0 : navigator.hardwareConcurrency } = options;
  for (const [wanted, id, label] of [[bos, tokenizer.bosId, "bos"], [eos, tokenizer.eosId, "eos"]] as const) {
    if (wanted && id === undefined) {
      throw new RangeError(`The tokenizer ${tokenizer.path} has no ${label} token; --no_${label} would work`);
    }
  }
  const pathOf = (split: string) => join(outDir, split, subset, name + ".bin");
  const outputs = validationFraction > 0 ? [pathOf("train"), pathOf("valid")] : [pathOf("train")];
  refuseExisting(outputs.flatMap((path) => [path, path + ".meta"]), overwrite);

  const { split, field, minChars, maxChars, instruct } = options;
  const settings = { split, field, minChars, maxChars, instruct, bos, eos, validationFraction, seed, outputs };
  const identity = fingerprint(settings, tokenizer.path, files), journalPath = `${outputs[0]}.partial.journal`;
  const found = readJournal(journalPath, identity);
  let begin: Journal | undefined;
  if (found && "unfit" in found) onNotice?.(`Begun anew: an unfinished run is there, but ${found.unfit}`);
  else if (found?.sets.every(({ written }, i) => hasWritten(outputs[i]!, written))) {
    begin = found;
    onNotice?.(`Going on after ${begin.documents.toLocaleString("en-US")} documents of an unfinished run`);
  }

  let journaled = begin !== undefined;
  const sets: { writer: TokenFileWriter; tally: Tally }[] = [];
  const encoders = openChunkEncoders(tokenizer, { tokenizer: tokenizer.path, bos, eos, sets: outputs.length }, workers);
  try {
    for (const [i, path] of outputs.entries()) {
      const before = begin?.sets[i];
      const writer = createTokenFile(path, { overwrite, ...(before && { from: before.written }) });
      sets.push({ writer, tally: before?.tally ?? newTally(tokenizer.vocabSize) });
    }
    const random = new RandomState(seed);
    const draw = () => sets.length > 1 && random.randomSample() < validationFraction ? 1 : 0;
    for (let i = 0; i < (begin?.documents ?? 0); i++) draw();

    const bytesBefore = files.map((_, i) => files.slice(0, i).reduce((sum, { bytes }) => sum + bytes, 0));
    let documents = begin?.documents ?? 0, saved = performance.now();
    const tell = (bytes: number) => {
      const tokens = sets.reduce((sum, { writer }) => sum + writer.tokens, 0);
      options.onProgress?.({ stage: "tokenize", bytes, totalBytes, documents, tokens });
    };
    const store = (chunk: PlacedChunk, lines: readonly EncodedLines[]) => {
      lines.forEach((line, i) => {
        sets[i]!.writer.append(line);
        count(sets[i]!.tally, line);
      });
      documents += chunk.texts.length;
      tell(bytesBefore[chunk.file]! + chunk.bytesRead);
      if (performance.now() - saved < journalSeconds * 1000) return;
      const { file, inFile } = chunk;
      const done = sets.map(({ writer, tally }) => ({ written: writer.sync(), tally }));
      naming(journalPath, () => writeJournal(journalPath, identity, { file, inFile, documents, sets: done }));
      journaled = true;
      saved = performance.now();
    };
    // Encoders work ahead, and what they give is stored in the order of the documents.
    const underWay: { chunk: PlacedChunk; lines: Promise<EncodedLines[]> }[] = [];
    const storeNext = async () => {
      const { chunk, lines } = underWay.shift()!;
      store(chunk, await lines);
    };
    for await (const chunk of readChunks(inputs, begin ?? { file: 0, inFile: 0 }, draw)) {
      const lines = encoders.encode(chunk);
      lines.catch(() => {}); // it is awaited when its turn comes
      underWay.push({ chunk, lines });
      while (underWay.length >= 2 * encoders.width) await storeNext();
    }
    while (underWay.length > 0) await storeNext();
    tell(totalBytes);
    for (const { writer } of sets) {
      if (writer.samples > 0) continue;
      journaled = false;
      throw new RangeError(
        `${writer.path} would be empty: the text has ${documents} documents. More text` +
          (sets.length > 1 ? `, or another validation fraction than ${validationFraction},` : "") + " would work",
      );
    }
    for (const { writer } of sets) writer.finish();
    journaled = false;
  } catch (error) {
    if (journaled) onNotice?.("What was done so far is kept: the same command goes on from there");
    throw error;
  } finally {
    await encoders.close();
    for (const { writer } of sets) {
      if (journaled) writer.keep();
      else writer[Symbol.dispose]();
    }
    if (!journaled && sets.length === outputs.length && fileExists(journalPath)) Deno.removeSync(journalPath);
  }
  const [train, valid] = sets.map(({ writer, tally }) => summarize(writer, tally));
  return {
    tokenizer: tokenizer.path,
    vocabSize: tokenizer.vocabSize,
    train: train!,
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
  refuseExisting([options.path], options.overwrite ?? false, "going without --train_bpe, which uses it as it is");
  const { files, documentsOf, totalBytes } = openInputs(options);
  const trainer = createBpeTrainer();
  let documents = 0;
  for await (const { prompt, text } of documentsOf(files)) {
    if (prompt !== undefined) trainer.add(prompt);
    trainer.add(text);
    documents++;
  }
  if (documents === 0) {
    throw new RangeError("Cannot train a tokenizer: the text has no documents. More text would work");
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
export interface RunTokenizeOptions extends Omit<TokenizeOptions, "tokenizer" | "outDir" | "onProgress" | "onNotice"> {
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
  { progress, notice }: {
    progress?: (progress: TokenizeProgress) => void;
    notice?: (message: string) => void;
  } = {},
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
  const summary = await tokenizeFiles({ ...rest, ...onProgress, ...(notice && { onNotice: notice }), outDir });
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
      `${set.path}: ${count(set.documents)} ${set.documents === 1 ? "document" : "documents"}, ${
        count(set.tokens)
      } tokens, ` +
        `unigram entropy ${set.unigramEntropy.toFixed(3)} nats per token`,
      `  tokens per document (${set.shortest} to ${set.longest}): ` +
        set.lengthHistogram.flatMap((n, i) => n > 0 ? [`${2 ** i}–${2 ** (i + 1) - 1}: ${count(n)}`] : []).join(", "),
    );
    if (set.zeroIds > 0) lines.push(`  ${count(set.zeroIds)} tokens have id 0, which is never a training target`);
  }
  return lines.join("\n");
}
