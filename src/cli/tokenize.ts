/** `troupe tokenize`: from text to a tokenized data set, and to a tokenizer where there is none yet. */
import { dirname } from "node:path";
import { formatTokenizeSummary, runTokenize, type TokenizeProgress } from "../data/mod.ts";
import { formatBytes, formatCount } from "../observe/format.ts";
import { ArgumentError, createParser, type ParsedArguments } from "./parser.ts";
import { say, type Verb } from "./verb.ts";
import { requireAllowed } from "./writable.ts";

const summary = "make a tokenized data set from text, and a tokenizer where there is none yet";

const description = `${summary}

  troupe tokenize --tokenizer tokenizer.json --out data book.txt articles.jsonl notes/
  troupe tokenize --tokenizer tokenizer.json --train_bpe 4096 --out data --validation 0.05 notes/
  troupe tokenize --tokenizer tokenizer.model --out data --field content web-0.parquet web-1.jsonl.zst
  troupe tokenize --tokenizer tokenizer.model --out data --validation 0.1 --instruct alpaca.json

Written: OUT/train/SUBSET/NAME.bin and NAME.bin.meta, and with --validation the same under OUT/valid/. OUT/train and
OUT/valid are what data.train_folder and data.valid_folder of a run record name. A run that was killed goes on where it
was when the same command is given again.`;

interface TokenizeArguments extends ParsedArguments {
  readonly inputs: readonly string[];
  readonly tokenizer: string | undefined;
  readonly train_bpe: number | undefined;
  readonly out: string | undefined;
  readonly name: string;
  readonly subset: string;
  readonly validation: number;
  readonly seed: number;
  readonly no_bos: boolean;
  readonly no_eos: boolean;
  readonly split: "paragraph" | "file";
  readonly field: string;
  readonly instruct: boolean;
  readonly min_chars: number | undefined;
  readonly max_chars: number | undefined;
  readonly overwrite: boolean;
  readonly workers: number | undefined;
  readonly journal_seconds: number | undefined;
  readonly json: boolean;
  readonly help: boolean;
}

const makeParser = () =>
  createParser<TokenizeArguments>()
    .addArgument("inputs", {
      nargs: "*",
      help: "Files (.txt and .jsonl, also .gz and .zst; .parquet) and folders of them",
    })
    .addArgument("--tokenizer", {
      help: "tokenizer.json, a SentencePiece model or tiktoken's ranks; or made first with --train_bpe",
    })
    .addArgument("--train_bpe", { type: "int", help: "Make the tokenizer first: a byte-level BPE of N entries" })
    .addArgument("--out", { help: "Folder of the data set; left out, with --train_bpe: only the tokenizer is made" })
    .addArgument("--name", { default: "data", help: "Name of the files" })
    .addArgument("--subset", { default: "en", help: "Kind of data: a folder's name, and a name in metrics" })
    .addArgument("--validation", {
      type: "float",
      default: 0,
      help: "Share of the documents, drawn at random, that go into the validation set",
    })
    .addArgument("--seed", { type: "int", default: 0, help: "Seed of that draw" })
    .addArgument("--no_bos", { type: "flag", help: "Documents do not begin with the bos token" })
    .addArgument("--no_eos", { type: "flag", help: "Documents do not end with the eos token" })
    .addArgument("--split", {
      choices: ["paragraph", "file"],
      default: "paragraph",
      help: "What a document of a .txt file is: text between blank lines, or the whole file",
    })
    .addArgument("--field", {
      default: "text",
      help: "The field of JSON lines, or the Parquet column, that holds the text",
    })
    .addArgument("--instruct", {
      type: "flag",
      help: "Instruction data: JSON with instruction, input, output; prompts become context, which is never a target",
    })
    .addArgument("--min_chars", { type: "int", help: "Join neighbouring paragraphs until they have N characters" })
    .addArgument("--max_chars", {
      type: "int",
      help: "Cut documents, at ends of sentences, into parts of about N characters",
    })
    .addArgument("--overwrite", { type: "flag", help: "Replace existing output instead of refusing" })
    .addArgument("--workers", {
      type: "int",
      help:
        "Workers that encode; one a core if left out, and none for little text. The output is the same with any number",
    })
    // For tests: how often it notes how far it is.
    .addArgument("--journal_seconds", { type: "float", verbs: [] })
    .addArgument("--json", { type: "flag", help: "Standard output carries one line of JSON" });

/** Each holds a tokenizer. */
const mostWorkers = 256;

/** One line on how far it is: `tokenizing  42 %  1.20 MiB  1.5k documents  300k tokens`. */
export function progressLine({ stage, bytes, totalBytes, documents, tokens }: TokenizeProgress): string {
  const counts = `${formatCount(documents)} documents`;
  if (stage === "train tokenizer") return `training the tokenizer on ${counts}, ${formatBytes(totalBytes)}`;
  const share = totalBytes > 0 ? Math.floor(100 * bytes / totalBytes) : 100;
  return `tokenizing  ${share} %  ${formatBytes(bytes)}  ${counts}  ${formatCount(tokens)} tokens`;
}

/** Where there is no terminal, a line now and then. */
function slowLines() {
  let last = performance.now();
  return (progress: TokenizeProgress) => {
    if (performance.now() - last < 30_000) return;
    last = performance.now();
    say(progressLine(progress));
  };
}

/** Keeps one line of a terminal up to date, ten times a second at most. */
function liveLine(terminal: typeof Deno.stderr) {
  const encoder = new TextEncoder(), write = (text: string) => terminal.writeSync(encoder.encode(`\r\x1b[K${text}`));
  let last = -Infinity;
  return {
    show(progress: TokenizeProgress) {
      if (performance.now() - last < 100) return;
      last = performance.now();
      write(progressLine(progress));
    },
    clear: () => void write(""),
  };
}

export const tokenize: Verb = {
  summary,
  async run(args) {
    const parser = makeParser();
    const parsed = parser.parse(args);
    if (parsed.help) {
      console.log(parser.help("tokenize", description));
      return 0;
    }
    const { inputs, tokenizer, train_bpe: trainBpe, out: outDir, validation, min_chars, max_chars, overwrite } = parsed;
    if (inputs.length === 0) {
      throw new ArgumentError("no text was named; .txt or .jsonl files, or folders of them, work");
    }
    if (tokenizer === undefined) {
      throw new ArgumentError(
        "--tokenizer is missing: a tokenizer.json or tokenizer.model, made first with --train_bpe 4096 if need be",
      );
    }
    if (outDir === undefined && trainBpe === undefined) {
      throw new ArgumentError("nothing to do: --out FOLDER makes a data set, --train_bpe 4096 a tokenizer");
    }
    if (validation < 0 || validation >= 1) {
      throw new ArgumentError(`--validation: ${validation} is not a share from 0 to below 1; 0.05 would work`);
    }
    if ((parsed.workers ?? 0) < 0) throw new ArgumentError(`--workers: ${parsed.workers} is below 0`);
    if ((parsed.workers ?? 0) > mostWorkers) {
      throw new ArgumentError(`--workers: ${parsed.workers} is more than ${mostWorkers}; one a core is what is fast`);
    }
    for (const [name, value] of [["name", parsed.name], ["subset", parsed.subset]] as const) {
      if (/[/\\]|^\.{1,2}$/.test(value)) {
        throw new ArgumentError(`--${name}: "${value}" is no plain name, such as ${name === "name" ? "data" : "en"}`);
      }
    }
    for (const [name, value] of Object.entries({ train_bpe: trainBpe, min_chars, max_chars })) {
      if (value !== undefined && value < 1) throw new ArgumentError(`--${name}: ${value} is not above 0`);
    }

    if (parsed.instruct && (min_chars !== undefined || max_chars !== undefined)) {
      throw new ArgumentError(
        "--instruct: instructions are not joined or cut; without --min_chars and --max_chars works",
      );
    }

    if (outDir !== undefined) requireAllowed("--out", outDir);
    if (trainBpe !== undefined) requireAllowed("--tokenizer", tokenizer, dirname(tokenizer));

    const line = Deno.stderr.isTerminal() ? liveLine(Deno.stderr) : undefined;
    let result;
    try {
      result = await runTokenize({
        inputs,
        tokenizer,
        name: parsed.name,
        subset: parsed.subset,
        bos: !parsed.no_bos,
        eos: !parsed.no_eos,
        validationFraction: validation,
        seed: parsed.seed,
        split: parsed.split,
        field: parsed.field,
        instruct: parsed.instruct,
        overwrite,
        ...(parsed.workers !== undefined && { workers: parsed.workers }),
        ...(parsed.journal_seconds !== undefined && { journalSeconds: parsed.journal_seconds }),
        ...(trainBpe !== undefined && { trainBpe }),
        ...(outDir !== undefined && { outDir }),
        ...(min_chars !== undefined && { minChars: min_chars }),
        ...(max_chars !== undefined && { maxChars: max_chars }),
      }, { progress: line?.show ?? slowLines(), notice: (message) => (line?.clear(), say(message)) });
    } finally {
      line?.clear();
    }
    const { trainedEntries, summary: made } = result;
    if (trainedEntries !== undefined && trainedEntries < trainBpe!) {
      say(`The text was too small for ${trainBpe} entries: the tokenizer has ${trainedEntries}`);
    }
    if (parsed.json) {
      console.log(JSON.stringify({ tokenizer, ...(trainedEntries !== undefined && { trainedEntries }), ...made }));
      return 0;
    }
    if (trainedEntries !== undefined) console.log(`${tokenizer}: ${trainedEntries.toLocaleString("en-US")} entries`);
    if (made) console.log(formatTokenizeSummary(made));
    return 0;
  },
};
