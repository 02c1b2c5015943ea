/**
 * tiktoken's rank files (`NAME.tiktoken`, and Llama 3's and Qwen's of that form): a line for each token, its bytes in
 * base64 and its rank. They are brought into the form of a `tokenizer.json` as Hugging Face's converter does it, and
 * encoded by Hugging Face's library. A rank file names neither its special tokens nor how text is split into words;
 * both are told from the number of its tokens.
 */
import { byteAlphabet } from "./bpe_training.ts";

const gptTwo = String.raw`'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`;
const contraction = "'(?:[sS]|[dD]|[mM]|[tT]|[lL][lL]|[vV][eE]|[rR][eE])";
const cl100k = (digits: string) =>
  contraction + String.raw`|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}${digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;
const [upper, lower] = [String.raw`\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}`, String.raw`\p{Ll}\p{Lm}\p{Lo}\p{M}`];
const o200k = [
  String.raw`[^\r\n\p{L}\p{N}]?[${upper}]*[${lower}]+(?:${contraction})?`,
  String.raw`[^\r\n\p{L}\p{N}]?[${upper}]+[${lower}]*(?:${contraction})?`,
  String.raw`\p{N}{1,3}`,
  String.raw` ?[^\s\p{L}\p{N}]+[\r\n/]*`,
  String.raw`\s*[\r\n]+`,
  String.raw`\s+(?!\S)`,
  String.raw`\s+`,
].join("|");

/** How a family of rank files splits text, and its special tokens. */
export interface TiktokenFamily {
  readonly name: string;
  /** Words, as a regular expression with the flag "u". */
  readonly pattern: string;
  readonly special: Readonly<Record<string, number>>;
  readonly bos?: string;
  readonly eos?: string;
}

const end = "<|endoftext|>";
/** By the number of tokens in the file. */
const families: Readonly<Record<number, TiktokenFamily>> = {
  50256: { name: "gpt2", pattern: gptTwo, special: { [end]: 50256 }, eos: end },
  50280: { name: "p50k_base", pattern: gptTwo, special: { [end]: 50256 }, eos: end },
  100256: {
    name: "cl100k_base",
    pattern: cl100k("{1,3}"),
    special: {
      [end]: 100257,
      "<|fim_prefix|>": 100258,
      "<|fim_middle|>": 100259,
      "<|fim_suffix|>": 100260,
      "<|endofprompt|>": 100276,
    },
    eos: end,
  },
  128000: {
    name: "llama3",
    pattern: cl100k("{1,3}"),
    special: { "<|begin_of_text|>": 128000, "<|end_of_text|>": 128001 },
    bos: "<|begin_of_text|>",
    eos: "<|end_of_text|>",
  },
  151643: {
    name: "qwen",
    pattern: cl100k(""),
    special: { [end]: 151643, "<|im_start|>": 151644, "<|im_end|>": 151645 },
    eos: end,
  },
  199998: { name: "o200k_base", pattern: o200k, special: { [end]: 199999, "<|endofprompt|>": 200018 }, eos: end },
};

/** Whether a file that begins so is one of ranks. */
export const looksLikeTiktoken = (head: string) => /^[A-Za-z0-9+/]+=* \d+\r?\n/.test(head);

/** Tokens as strings of one character a byte, and their ranks. Throws `RangeError` that says what is wrong. */
export function parseTiktoken(text: string): Map<string, number> {
  const ranks = new Map<string, number>();
  text.split("\n").forEach((line, number) => {
    if (line.trim() === "") return;
    const match = /^([A-Za-z0-9+/]+=*) (\d+)\r?$/.exec(line);
    if (!match) throw new RangeError(`line ${number + 1} is no token and rank: ${line.slice(0, 40)}`);
    try {
      ranks.set(atob(match[1]!), Number(match[2]));
    } catch {
      throw new RangeError(`line ${number + 1} is not base64: ${line.slice(0, 40)}`);
    }
  });
  for (let byte = 0; byte < 256; byte++) {
    if (!ranks.has(String.fromCharCode(byte))) throw new RangeError(`it lacks byte ${byte}: ranks of bytes are needed`);
  }
  return ranks;
}

/** Throws `RangeError` where no family has so many tokens. */
export function tiktokenFamily(tokens: number): TiktokenFamily {
  const family = families[tokens];
  if (family) return family;
  const known = Object.entries(families).map(([count, { name }]) => `${count} (${name})`).join(", ");
  throw new RangeError(`how it splits text is not known, with ${tokens} tokens; known are ${known}`);
}

/** The two parts whose merge gives `token`: what is left when all merges of lower rank are made. */
function lastMerge(token: string, ranks: ReadonlyMap<string, number>, rank: number): string[] {
  const parts = [...token];
  for (;;) {
    let best = -1, bestRank = rank;
    for (let i = 0; i + 1 < parts.length; i++) {
      const pair = ranks.get(parts[i]! + parts[i + 1]!);
      if (pair !== undefined && pair < bestRank) [best, bestRank] = [i, pair];
    }
    if (best < 0) return parts;
    parts.splice(best, 2, parts[best]! + parts[best + 1]!);
  }
}

/** The ranks in the form of a `tokenizer.json`. */
export function tiktokenDefinition(ranks: ReadonlyMap<string, number>, family: TiktokenFamily): object {
  const alphabet = byteAlphabet();
  const spelled = (token: string) => {
    let text = "";
    for (let i = 0; i < token.length; i++) text += alphabet[token.charCodeAt(i)];
    return text;
  };
  const vocab: Record<string, number> = Object.create(null), merges: [string, string][] = [];
  for (const [token, rank] of [...ranks].sort((a, b) => a[1] - b[1])) {
    vocab[spelled(token)] = rank;
    if (token.length === 1) continue;
    const parts = lastMerge(token, ranks, rank);
    // A token that no merge leads to only stands for a whole word.
    if (parts.length === 2) merges.push([spelled(parts[0]!), spelled(parts[1]!)]);
  }
  return {
    version: "1.0",
    added_tokens: Object.entries(family.special).map(([content, id]) => ({
      id,
      content,
      special: true,
      normalized: false,
    })),
    normalizer: null,
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [
        { type: "Split", pattern: { Regex: family.pattern }, behavior: "Isolated", invert: false },
        { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false },
      ],
    },
    post_processor: null,
    decoder: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    model: { type: "BPE", vocab, merges, ignore_merges: true },
  };
}
