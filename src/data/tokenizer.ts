/** Tokenizers in Hugging Face's `tokenizer.json` form. */
import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import { dirname, join } from "node:path";

export interface Tokenizer {
  readonly path: string;
  /** One more than the largest id. */
  readonly vocabSize: number;
  /** Ids of the tokens that begin and end a document, where the tokenizer has them. */
  readonly bosId: number | undefined;
  readonly eosId: number | undefined;
  /** Ids of `text`, without bos and eos. */
  encode(text: string): number[];
  /** Special tokens are left out. */
  decode(ids: ArrayLike<number>): string;
  idOf(token: string): number | undefined;
  tokenOf(id: number): string | undefined;
}

interface TokenizerConfig {
  bos_token?: string | { content?: string } | null;
  eos_token?: string | { content?: string } | null;
}

function readJson(path: string, what: string): unknown {
  let text: string;
  try {
    text = Deno.readTextFileSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) {
      throw new Deno.errors.NotFound(
        `${what} ${path} is missing. A Hugging Face folder has one, and \`troupe tokenize --train-bpe 4096\` makes one`,
      );
    }
    throw error;
  }
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new SyntaxError(`${what} ${path} is not JSON: ${(error as Error).message}`);
  }
}

function isDirectory(path: string): boolean {
  try {
    return Deno.statSync(path).isDirectory;
  } catch {
    return false; // reading it says what is wrong
  }
}

function isFile(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/**
 * Loads `path`, a `tokenizer.json` or a folder that holds one. A `tokenizer_config.json` beside it names bos and eos;
 * else they are `<s>` and `</s>` where the vocabulary has them. Throws `Deno.errors.NotFound` when the file is missing and
 * `SyntaxError` when it is not a tokenizer.
 */
export function loadTokenizer(path: string): Tokenizer {
  const file = isDirectory(path) ? join(path, "tokenizer.json") : path;
  const definition = readJson(file, "The tokenizer");
  const configPath = join(dirname(file), "tokenizer_config.json");
  const config = isFile(configPath) ? readJson(configPath, "The tokenizer's settings") as TokenizerConfig : {};
  const model = (definition as { model?: { type?: unknown; vocab?: unknown } } | null)?.model;
  if (typeof model !== "object" || model === null || typeof model.vocab !== "object") {
    throw new SyntaxError(`The tokenizer ${file} has no model with a vocabulary: it is not in tokenizer.json form`);
  }
  let tokenizer: HuggingFaceTokenizer;
  try {
    tokenizer = new HuggingFaceTokenizer(definition as object, config);
    tokenizer.encode("A", { add_special_tokens: false });
  } catch (error) {
    throw new SyntaxError(`The tokenizer ${file} cannot be used (model ${model.type}): ${(error as Error).message}`);
  }
  let vocabSize = 0;
  for (const id of tokenizer.get_vocab(true).values()) vocabSize = Math.max(vocabSize, id + 1);
  const special = (setting: TokenizerConfig["bos_token"], fallback: string) => {
    const name = typeof setting === "string" ? setting : setting?.content ?? fallback;
    return tokenizer.token_to_id(name);
  };
  return {
    path: file,
    vocabSize,
    bosId: special(config.bos_token, "<s>"),
    eosId: special(config.eos_token, "</s>"),
    encode: (text) => tokenizer.encode(text, { add_special_tokens: false }).ids,
    decode: (ids) =>
      ids.length === 0
        ? ""
        : tokenizer.decode(Array.from(ids), { skip_special_tokens: true, clean_up_tokenization_spaces: false }),
    idOf: (token) => tokenizer.token_to_id(token),
    tokenOf: (id) => tokenizer.id_to_token(id),
  };
}
