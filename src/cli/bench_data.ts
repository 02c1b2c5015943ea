/**
 * `troupe bench data`: what stands between text and a rank. Tokenizing, by the run's tokenizer, on the text of the run's
 * own data; a made-up set of many documents, opened; and its batches, through the loader's worker.
 */
import { join } from "node:path";
import process from "node:process";
import { type DataLoaderOptions, dataLoaderProtocol } from "../../actors/data_loader.ts";
import { createRuntime, inWorker } from "../../actors/runtime/mod.ts";
import type { ResolvedConfig } from "../config/mod.ts";
import { createTokenFile, createTrainLoader, loadTokenizer, type TrainDataOptions } from "../data/mod.ts";
import { type Report, round, secondsSince } from "./bench_line.ts";
import { entryUrl } from "./self.ts";
import { say } from "./verb.ts";
import type { WorkerTask } from "./worker.ts";

/** Text that is tokenized, in bytes, and for how long at least. */
const textBytes = 2e6, tokenizeSeconds = 1;
const loaderSeconds = 1;
/** Batches before the loader is timed: its code is compiled by then. */
const warmBatches = 100;

/** Processor time of this process, all threads. */
const cpuSeconds = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
};

export interface BenchDataOptions {
  /** Documents of the made-up set. */
  readonly documents: number;
  readonly report: Report;
}

export async function benchData(
  config: ResolvedConfig,
  { documents, report }: BenchDataOptions,
): Promise<void> {
  await benchTokenizer(config, report);
  const folder = Deno.makeTempDirSync({ dir: ".", prefix: ".troupe-bench-" });
  try {
    say(`Making a set of ${documents.toLocaleString("en-US")} documents, for the time of the bench`);
    const tokens = makeSet(folder, documents);
    const data: TrainDataOptions = { train_folder: folder, seq_len: 4096, micro_bsz: 1, micro_num: 4 };
    benchOpen(data, { documents, tokens, report });
    await benchLoader(data, report);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

/** Text of the training data, by its own tokenizer. */
async function textOf(config: ResolvedConfig): Promise<string[]> {
  const { decode } = loadTokenizer(config.data.tokenizer_path!);
  const loader = createTrainLoader({ ...config.data, use_shm: false }, { dataRank: 0, dataWorldSize: 1 });
  const texts: string[] = [];
  try {
    for (let bytes = 0; bytes < textBytes;) {
      for (const { inputIds, segmentEnd } of (await loader.next()).microBatches) {
        for (let start = 0; start < inputIds.length; start = segmentEnd[start]!) {
          texts.push(decode(inputIds.subarray(start, segmentEnd[start]!)));
          bytes += texts.at(-1)!.length;
        }
      }
    }
  } finally {
    loader.close();
  }
  return texts;
}

async function benchTokenizer(config: ResolvedConfig, report: Report): Promise<void> {
  const { train_folder, tokenizer_path: path } = config.data;
  if (path === null || train_folder === null) {
    return say("Tokenizing is not measured: data.train_folder and data.tokenizer_path are needed");
  }
  const texts = await textOf(config), { encode, vocabSize } = loadTokenizer(path);
  const bytes = texts.reduce((sum, text) => sum + new TextEncoder().encode(text).length, 0);
  for (const text of texts.slice(0, 200)) encode(text); // compiled before it is timed, as in any longer run
  const started = performance.now(), cpu = cpuSeconds();
  let rounds = 0;
  for (; rounds === 0 || secondsSince(started) < tokenizeSeconds; rounds++) for (const text of texts) encode(text);
  const megabytes = rounds * bytes / 1e6, seconds = secondsSince(started);
  report({
    bench: "data",
    figure: "tokenize",
    value: round(megabytes / seconds),
    unit: "MB/s",
    per_core: round(megabytes / (cpuSeconds() - cpu)),
    vocabulary: vocabSize,
    bytes,
  });
}

/** Documents of 100 to 299 tokens, one file. @returns tokens */
function makeSet(folder: string, documents: number): number {
  const encoder = new TextEncoder();
  const kinds = Array.from({ length: 200 }, (_, kind) => {
    const tokens = Array.from({ length: 100 + kind }, (_, i) => 1 + (i * 7919 + kind * 104729) % 50000);
    return { bytes: encoder.encode(`{"tokens": [${tokens}]}\n`), length: tokens.length };
  });
  using writer = createTokenFile(join(folder, "en/data.bin"));
  for (let i = 0; i < documents; i++) {
    const { bytes, length } = kinds[i * 31 % kinds.length]!;
    writer.append({ bytes, sizes: Uint32Array.of(bytes.length), lengths: Uint32Array.of(length) });
  }
  writer.finish();
  return writer.tokens;
}

interface MadeSet {
  readonly documents: number;
  readonly tokens: number;
  readonly report: Report;
}

function benchOpen(data: TrainDataOptions, { documents, tokens, report }: MadeSet): void {
  const { rss } = Deno.memoryUsage(), cpu = cpuSeconds(), started = performance.now();
  const loader = createTrainLoader(data, { dataRank: 0, dataWorldSize: 1 }), seconds = secondsSince(started);
  report({
    bench: "data",
    figure: "open",
    value: round(seconds),
    unit: "s",
    cpu_seconds: round(cpuSeconds() - cpu),
    documents,
    tokens,
    memory_bytes_per_document: round((Deno.memoryUsage().rss - rss) / documents),
  });
  loader.close();
}

/** Batches as a rank gets them: from the loader in a worker, one asked for after the other. */
async function benchLoader(data: TrainDataOptions, report: Report): Promise<void> {
  const options: DataLoaderOptions = { data, dataRank: 0, dataWorldSize: 1 };
  const task: WorkerTask = { actor: "data_loader", options }, runtime = createRuntime();
  const loader = runtime.spawn("loader", inWorker(dataLoaderProtocol, { url: entryUrl, data: task }));
  try {
    const started = performance.now();
    await loader.ask({ kind: "next" }, { timeoutMs: 600_000 });
    const first = secondsSince(started);
    for (let i = 0; i < warmBatches; i++) await loader.ask({ kind: "next" }, { timeoutMs: 600_000 });
    const begun = performance.now(), cpu = cpuSeconds();
    let tokens = 0;
    while (secondsSince(begun) < loaderSeconds) {
      tokens += (await loader.ask({ kind: "next" }, { timeoutMs: 600_000 })).tokens;
    }
    report({
      bench: "data",
      figure: "loader",
      value: round(tokens / secondsSince(begun)),
      unit: "tokens/s",
      per_core: round(tokens / (cpuSeconds() - cpu)),
      first_batch_seconds: round(first),
    });
  } finally {
    await runtime.stop();
  }
}
