/** Tokenizers: Hugging Face's `tokenizer.json`, SentencePiece models, tiktoken's ranks. */
import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import { dirname, join } from "node:path";
import { bpeEncoder } from "./bpe.ts";
import {
  cutNormalised,
  parseSentencePiece,
  sentencePieceDecoder,
  sentencePieceDefinition,
  sentencePieceNormalizer,
} from "./sentencepiece.ts";
import { looksLikeTiktoken, parseTiktoken, tiktokenDefinition, tiktokenFamily } from "./tiktoken.ts";

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

function readBytes(path: string, what: string): Uint8Array {
  try {
    return Deno.readFileSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) {
      throw new Deno.errors.NotFound(
        `${what} ${path} is missing. A Hugging Face folder has one, and \`troupe tokenize --train_bpe 4096\` makes one`,
      );
    }
    throw error;
  }
}

function parseJson(bytes: Uint8Array, path: string, what: string): unknown {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
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

/** A tokenizer's file in a folder: the first of these names. */
function fileIn(folder: string): string {
  const names = ["tokenizer.json", "tokenizer.model"].map((name) => join(folder, name));
  return names.find(isFile) ?? names[0]!;
}

/** The tokenizer's file: `path`, or what a folder holds as `tokenizer.json` or else `tokenizer.model`. */
export const tokenizerFile = (path: string): string => isDirectory(path) ? fileIn(path) : path;

/**
 * Loads `path`, or what a folder holds as `tokenizer.json` or else `tokenizer.model`. The content tells what it is: a
 * `tokenizer.json`, a SentencePiece model, or tiktoken's ranks. Throws `Deno.errors.NotFound` when the file is missing and
 * `SyntaxError` when it is not a tokenizer.
 */
export function loadTokenizer(path: string): Tokenizer {
  const file = tokenizerFile(path);
  const bytes = readBytes(file, "The tokenizer");
  const head = new TextDecoder().decode(bytes.subarray(0, 512));
  if (looksLikeTiktoken(head)) return fromTiktoken(file, bytes);
  // The first piece of a model: field 1, its length, and in it field 1, a text.
  if (bytes[0] === 10 && bytes[2] === 10) return fromSentencePiece(file, bytes);
  return fromJson(file, parseJson(bytes, file, "The tokenizer"));
}

/** Throws `SyntaxError` naming the file where the library cannot use the definition. */
function useDefinition(file: string, what: string, define: () => object, config: object = {}): HuggingFaceTokenizer {
  try {
    const tokenizer = new HuggingFaceTokenizer(define(), config);
    encodeByLibrary(file, tokenizer, "A");
    return tokenizer;
  } catch (error) {
    throw new SyntaxError(`The tokenizer ${file} cannot be used (${what}): ${(error as Error).message}`);
  }
}

/**
 * A `tokenizer_config.json` beside the file names bos and eos; else they are `<s>` and `</s>` where the vocabulary has
 * them.
 */
function fromJson(file: string, definition: unknown): Tokenizer {
  const configPath = join(dirname(file), "tokenizer_config.json"), settings = "The tokenizer's settings";
  const config: TokenizerConfig = isFile(configPath)
    ? parseJson(readBytes(configPath, settings), configPath, settings) as TokenizerConfig
    : {};
  const model = (definition as { model?: { type?: unknown; vocab?: unknown } } | null)?.model;
  if (typeof model !== "object" || model === null || typeof model.vocab !== "object") {
    throw new SyntaxError(`The tokenizer ${file} has no model with a vocabulary: it is not in tokenizer.json form`);
  }
  checkIds(file, model.vocab as object, (definition as { added_tokens?: unknown }).added_tokens);
  const tokenizer = useDefinition(file, `model ${model.type}`, () => definition as object, config);
  const special = (setting: TokenizerConfig["bos_token"], fallback: string) => {
    const name = typeof setting === "string" ? setting : setting?.content ?? fallback;
    return tokenizer.token_to_id(name);
  };
  return {
    ...fromLibrary(file, tokenizer, definition as object),
    bosId: special(config.bos_token, "<s>"),
    eosId: special(config.eos_token, "</s>"),
  };
}

/** Ids by the library, which gives undefined for what the vocabulary has no token for, not even an unknown one. */
function encodeByLibrary(file: string, tokenizer: HuggingFaceTokenizer, text: string): number[] {
  const { ids } = tokenizer.encode(text, { add_special_tokens: false });
  if (ids.includes(undefined as unknown as number)) {
    throw new RangeError(`The tokenizer ${file} has no token for a part of ${JSON.stringify(text.slice(0, 60))}`);
  }
  return ids;
}

/** Ids of a text without bos and eos: by our own encoder where it knows the tokenizer, else by the library. */
function encoderOf(file: string, tokenizer: HuggingFaceTokenizer, definition: object): (text: string) => number[] {
  return bpeEncoder(tokenizer, definition) ?? ((text) => encodeByLibrary(file, tokenizer, text));
}

/** Larger ids are damage: tables are made with a place for each. */
const largestId = 2 ** 24;

/** Throws `SyntaxError` where a token's id is none. A vocabulary that is a list has places for ids. */
function checkIds(file: string, vocab: object, added: unknown): void {
  const named = (Array.isArray(added) ? added : []).map((token) => [token?.content, token?.id] as const);
  for (const [token, id] of [...(Array.isArray(vocab) ? [] : Object.entries(vocab)), ...named]) {
    if (Number.isInteger(id) && id >= 0 && id <= largestId) continue;
    throw new SyntaxError(
      `The tokenizer ${file} is damaged: the id of ${JSON.stringify(token)} is ${
        JSON.stringify(id)
      }, not a number from 0 on`,
    );
  }
}

function fromLibrary(
  file: string,
  tokenizer: HuggingFaceTokenizer,
  definition: object,
): Omit<Tokenizer, "bosId" | "eosId"> {
  let vocabSize = 0;
  for (const id of tokenizer.get_vocab(true).values()) vocabSize = Math.max(vocabSize, id + 1);
  return {
    path: file,
    vocabSize,
    encode: encoderOf(file, tokenizer, definition),
    decode: (ids) =>
      ids.length === 0
        ? ""
        : tokenizer.decode(Array.from(ids), { skip_special_tokens: true, clean_up_tokenization_spaces: false }),
    idOf: (token) => tokenizer.token_to_id(token),
    tokenOf: (id) => tokenizer.id_to_token(id),
  };
}

function fromTiktoken(file: string, bytes: Uint8Array): Tokenizer {
  let bos: number | undefined, eos: number | undefined, definition!: object;
  const tokenizer = useDefinition(file, "tiktoken's ranks", () => {
    const ranks = parseTiktoken(new TextDecoder().decode(bytes)), family = tiktokenFamily(ranks.size);
    [bos, eos] = [family.bos, family.eos].map((name) => name === undefined ? undefined : family.special[name]);
    return definition = tiktokenDefinition(ranks, family);
  });
  return { ...fromLibrary(file, tokenizer, definition), bosId: bos, eosId: eos };
}

function fromSentencePiece(file: string, bytes: Uint8Array): Tokenizer {
  let model!: ReturnType<typeof parseSentencePiece>, normalize!: (text: string) => string, definition!: object;
  const tokenizer = useDefinition(file, "a SentencePiece model", () => {
    model = parseSentencePiece(bytes);
    normalize = sentencePieceNormalizer(model);
    return definition = sentencePieceDefinition(model);
  });
  const encodePart = encoderOf(file, tokenizer, definition);
  const ids = new Map(model.pieces.map(({ text }, id) => [text, id]));
  return {
    path: file,
    vocabSize: model.pieces.length,
    bosId: model.bosId,
    eosId: model.eosId,
    encode(text) {
      const ids: number[] = [];
      for (const part of cutNormalised(normalize(text))) {
        if (part === "") continue;
        for (const id of encodePart(part)) ids.push(id);
      }
      return ids;
    },
    decode: sentencePieceDecoder(model),
    idOf: (token) => ids.get(token),
    tokenOf: (id) => model.pieces[id]?.text,
  };
}
